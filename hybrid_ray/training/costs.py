"""What a run has cost so far, kept by docs/method.md, section 4.

Training seconds are the synchronised seconds inside ``trainer.step``: forwards, snapshots and whatever else the method
needs are in them. Set-up, calibration, compilation, evaluation and checkpoints are ``other``.
"""

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from hybrid_ray.method.trainer import StepResult
from hybrid_ray.run_result import Evaluation
from hybrid_ray.training.telemetry.extremes import RunExtremes

__all__ = ["RunCosts"]


_PLAIN_PARTS = ("data", "forward", "backward", "optimizer")


class RunCosts:
    """Seconds and tokens of one run. Its steps are counted by its trainer.

    Attributes:
        step_cost: seconds of a plain step in this process when last looked at (`StepTimer`).
        optimizer_cost: what the run's optimizer takes for a step, over what the one that time is told in takes.
    """

    def __init__(self) -> None:
        self.step_cost = 1.0
        self.optimizer_cost = 1.0
        self.phase_seconds: defaultdict[str, float] = defaultdict(float)
        self.other_seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: Counter[str] = Counter(gradient=0, forward_only=0)
        self.curve: list[Evaluation] = []
        self.extremes = RunExtremes()
        self.settings: list[
            dict[str, Any]
        ] = []  # that it trained in (`TrainSetup.setting`): a resumed run may change it
        self._plain_steps = 0.0  # time up to the last look
        self._since = 0.0  # seconds of training since then

    @property
    def train_seconds(self) -> float:
        return sum(self.phase_seconds.values())

    def calibration(self, part_seconds: Mapping[str, float], real_steps: int) -> float:
        """Seconds of a plain step while this run trained: the unit that its time is told in.

        A real step *is* a plain step, with what the method does beside it kept apart in parts of their own. So the
        run's own real steps are the plain steps timed under exactly its conditions, each beside the steps that it is
        compared with; whatever slows the machine slows both. Beside busy neighbours this spreads far less than any
        calibration at other moments (``benchmarks/calibration.py``). That real steps cost no more than plain ones is
        checked by `plain_step`, which is measured apart.

        Where time is told in another optimizer's steps (``train.clock_optimizer``), the run's own optimizer counts for
        what the other would have taken; the rest of its cost is time like any other.
        """
        seconds = {part: part_seconds.get(part, 0.0) for part in _PLAIN_PARTS}
        seconds["optimizer"] /= self.optimizer_cost
        return sum(seconds.values()) / max(1, real_steps)

    def setting(self, now: dict[str, Any]) -> dict[str, Any]:
        """``now``, with the others that the run has trained in, if any: its seconds are of all of them."""
        others = [setting for setting in self.settings if setting != now]
        return {**now, "others": others} if others else now

    @property
    def plain_step(self) -> float:
        """Seconds of a plain step by the clock of `StepTimer`: before the run and at each evaluation.

        Each second of training counts by what a plain step cost around it.
        """
        return self.train_seconds / self._time if self._time else self.step_cost

    @property
    def _time(self) -> float:
        """Training time in plain steps as `StepTimer` has them."""
        return self._plain_steps + self._since / self.step_cost

    def update_step_cost(self, step_cost: float) -> None:
        """A new look at what a plain step costs: the seconds since the last one count by the mean of the two."""
        self._plain_steps += 2.0 * self._since / (self.step_cost + step_cost)
        self._since, self.step_cost = 0.0, step_cost

    def count(self, step: int, result: StepResult, seconds: float) -> None:
        """A nominal step is done, the ``step``-th."""
        self._since += seconds
        self.phase_seconds[str(result.phase)] += seconds
        self.extremes.note(step, result)

    def read(self, tokens: int) -> None:
        """A micro-batch was read, for a gradient if gradients are on, else for a forward alone. Tokens of all ranks."""
        self.tokens["gradient" if torch.is_grad_enabled() else "forward_only"] += tokens

    @contextlib.contextmanager
    def other(self, name: str) -> Iterator[None]:
        """The block is not training: its seconds are kept apart under this name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.other_seconds[name] += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint loads without unpickling."""
        return {
            "plain_steps": self._time,
            "optimizer_cost": self.optimizer_cost,
            "phase_seconds": dict(self.phase_seconds),
            "other_seconds": dict(self.other_seconds),
            "tokens": dict(self.tokens),
            "curve": [asdict(evaluation) for evaluation in self.curve],
            "extremes": self.extremes.state_dict(),
            "settings": self.settings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. What this process has spent so far (set-up, calibration) is added to it."""
        self._plain_steps = state["plain_steps"]
        self.optimizer_cost = state["optimizer_cost"]
        for mine, saved in (
            (self.phase_seconds, state["phase_seconds"]),
            (self.other_seconds, state["other_seconds"]),
            (self.tokens, state["tokens"]),
        ):
            for name, value in saved.items():
                mine[name] += value
        self.curve = [Evaluation(**row) for row in state["curve"]]
        self.extremes.load_state_dict(state["extremes"])
        self.settings = list(state["settings"])
