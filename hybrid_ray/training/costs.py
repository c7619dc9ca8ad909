"""The cost of a run so far, by the rules of docs/method.md, section 4.

Training seconds are the seconds inside ``trainer.step``, with the device synchronised. They include all work of the
method. Set-up, calibration, compilation, evaluation and checkpoints count as ``other`` seconds.
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
from hybrid_ray.training.step_costs import PLAIN_PARTS, StepCosts
from hybrid_ray.training.telemetry.extremes import RunExtremes

__all__ = ["RunCosts"]


class RunCosts:
    """Seconds and tokens of one run. Its steps are counted by the trainer.

    Attributes:
        of_steps: what the run's steps cost beside plain ones, measured before its first one.
    """

    def __init__(self) -> None:
        self.of_steps = StepCosts()
        self.phase_seconds: defaultdict[str, float] = defaultdict(float)
        self.other_seconds: defaultdict[str, float] = defaultdict(float)
        self.tokens: Counter[str] = Counter(gradient=0, forward_only=0)
        self.curve: list[Evaluation] = []
        self.extremes = RunExtremes()
        # Every `TrainSetup.setting` that the run has trained in: it may change when a run is resumed.
        self.settings: list[dict[str, Any]] = []

    @property
    def train_seconds(self) -> float:
        return sum(self.phase_seconds.values())

    def step_seconds(self, part_seconds: Mapping[str, float], real_steps: int) -> float:
        """Seconds per plain step during this run: the unit of its training time.

        It is measured on the run's own real steps, which are plain steps once the method's work is left out (that has
        parts of its own). They are timed under the same conditions as the steps they are compared with: whatever slows
        the machine slows both. On a busy machine this varies far less than a separate calibration
        (``benchmarks/calibration.py``). `StepCosts.real_step` checks that they cost no more than steps of a run
        without prediction.

        With ``train.clock_optimizer`` time is measured in plain steps of another optimizer. The unit then contains the
        time of that optimizer's step; the rest of the own optimizer's cost counts as training time.
        """
        seconds = {part: part_seconds.get(part, 0.0) for part in PLAIN_PARTS}
        seconds["optimizer"] /= self.of_steps.optimizer
        return sum(seconds.values()) / max(1, real_steps)

    def setting(self, now: dict[str, Any]) -> dict[str, Any]:
        """``now``, plus the other settings that the run has trained in, since its seconds come from all of them."""
        others = [setting for setting in self.settings if setting != now]
        return {**now, "others": others} if others else now

    def count(self, step: int, result: StepResult, seconds: float) -> None:
        """Count the ``step``-th nominal step, which took ``seconds``."""
        self.phase_seconds[str(result.phase)] += seconds
        self.extremes.note(step, result)

    def read(self, tokens: int) -> None:
        """Count a micro-batch: ``tokens`` of all ranks, for a gradient if gradients are enabled, else for a forward."""
        self.tokens["gradient" if torch.is_grad_enabled() else "forward_only"] += tokens

    @contextlib.contextmanager
    def other(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under ``name``, not as training time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.other_seconds[name] += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, so that a checkpoint loads without unpickling."""
        return {
            "of_steps": asdict(self.of_steps),
            "phase_seconds": dict(self.phase_seconds),
            "other_seconds": dict(self.other_seconds),
            "tokens": dict(self.tokens),
            "curve": [asdict(evaluation) for evaluation in self.curve],
            "extremes": self.extremes.state_dict(),
            "settings": self.settings,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint, and add what this process has spent so far (set-up, calibration)."""
        self.of_steps = StepCosts(**state["of_steps"])
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
