"""Statistics of a run so far: jumps, events, seconds and memory by phase. `PhaseMachine.letters` records the steps."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from hybrid_ray.calibration import CalibrationCounts
from hybrid_ray.method.gate.agreement import Agreement
from hybrid_ray.method.gate.payback import FinishedCycle
from hybrid_ray.method.phase_memory import PhaseMemory
from hybrid_ray.method.phases import Phase
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.run_result import Replay

__all__ = ["TrainerStats"]


class TrainerStats:
    """Collects statistics. No decision depends on them.

    Args:
        device: on a GPU, memory by phase is recorded too (`PhaseMemory`).
    """

    def __init__(self, device: torch.device) -> None:
        self.norms: list[tuple[float, ...]] = []  # per jump: norms of the applied displacement, by group
        self.decisions = 0  # chances to predict
        self.overshoots = 0  # jumps after which the gradient pointed back
        self._planned: tuple[float, ...] = ()
        self._events: Counter[str] = Counter()
        self._sums: defaultdict[str, float] = defaultdict(float)  # sums of measurements, by name
        self._calibration = CalibrationCounts()  # confidence of jumps, and whether they were paid back
        self._measured = 0
        self._false_accepts = 0
        self._jumped = 0  # jumps measured
        self._withdrawn = 0  # jumps undone; they count as falsely accepted
        self._seconds = StepClock(device)
        self._memory = PhaseMemory(device)

    @property
    def jumps(self) -> int:
        return len(self.norms)

    def step(self, phase: Phase, after: int) -> AbstractContextManager[None]:
        """Time one nominal step, which comes after ``after`` earlier steps."""
        self._memory.enter(phase, after)
        return self._seconds.part(phase.value)

    def begin_jump(self, norms: Sequence[float]) -> None:
        """Record a new prediction with the ``norms`` of its whole displacement, by group."""
        self._planned = tuple(norms)
        self.norms.append(self._planned)

    def resize_jump(self, fraction: float) -> None:
        """Record that the last jump was shortened to a fraction of its planned length."""
        if self.norms:
            self.norms[-1] = tuple(norm * fraction for norm in self._planned)

    def withdraw_jump(self, cycle: FinishedCycle | None) -> None:
        """Record that the last jump was undone before the window after it could be measured, and what it brought."""
        self.resize_jump(0.0)
        self._withdrawn += 1
        if cycle is not None:
            self.add_cycle(cycle)

    def add_cycle(self, cycle: FinishedCycle) -> None:
        """Record whether the cycle's jump was paid back."""
        if cycle.jump > 0.0 and cycle.confidence is not None:
            self._calibration.add(cycle.confidence, cycle.paid_back)

    def count_event(self, name: str) -> None:
        self._events[str(name)] += 1

    def add_measured(self, measured: Agreement, *, jumped: bool) -> None:
        """Record the comparison of a window with its forecast, whether or not the forecast was applied (``jumped``)."""
        self._measured += 1
        for name in ("cosine", "alpha", "error"):
            self._sums[name] += getattr(measured, name)
        if jumped:
            self._jumped += 1
            self._sums["error_after_jump"] += measured.error
            self._false_accepts += measured.alpha <= 0.0

    @property
    def phase_seconds(self) -> dict[str, float]:
        return dict.fromkeys(map(str, Phase), 0.0) | self._seconds.seconds()

    def shares(self, replay: Replay, part_seconds: Mapping[str, float]) -> dict[str, Any]:
        """Numbers of steps and seconds by phase, as plain numbers."""
        steps = replay.real_steps + replay.predicted_steps
        phases = dict.fromkeys(map(str, Phase), 0) | replay.phase_steps
        return {
            "steps": steps,
            "real_steps": replay.real_steps,
            "predicted_steps": replay.predicted_steps,
            "backward_reduction": replay.predicted_steps / max(1, steps),
            "phase_steps": phases,
            "phase_shares": {phase: count / max(1, steps) for phase, count in phases.items()},
            "phase_seconds": self.phase_seconds,
            "part_seconds": dict(part_seconds),
        }

    def measures(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON. Means over cycles are None before the first cycle is measured.

        ``calibration`` has the confidence of every jump for which one was computed, and whether the jump was paid back
        within ``payback_tolerance`` (`CalibrationCounts.rows`).
        """
        judged = self._jumped + self._withdrawn
        measured = {
            f"mean_{name}": self._sums[name] / self._measured if self._measured else None
            for name in ("cosine", "alpha", "error")
        }
        return {
            "decisions": self.decisions,
            "jumps": self.jumps,
            "accept_rate": self.jumps / self.decisions if self.decisions else None,
            "false_accept_rate": (self._false_accepts + self._withdrawn) / judged if judged else None,
            "overshoots": self.overshoots,
            "mean_error_after_jump": self._sums["error_after_jump"] / self._jumped if self._jumped else None,
            **measured,
            "calibration": self._calibration.rows,
            "events": dict(self._events),
            "memory": self._memory.peaks(),
            "memory_bytes_a_step": self._memory.slope,
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": [list(norms) for norms in self.norms],
            "planned": list(self._planned),
            "counts": {name: getattr(self, name) for name in _COUNTS},
            "events": dict(self._events),
            "sums": dict(self._sums),
            "calibration": self._calibration.rows,
            "seconds": self._seconds.seconds(),
            "memory": self._memory.peaks(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.norms = [tuple(norms) for norms in state["norms"]]
        self._planned = tuple(state["planned"])
        for name in _COUNTS:
            setattr(self, name, state["counts"][name])
        self._events, self._sums = Counter(state["events"]), defaultdict(float, state["sums"])
        self._calibration = CalibrationCounts(state["calibration"])
        self._seconds.load(state["seconds"])
        self._memory.load(state["memory"])


_COUNTS = ("decisions", "overshoots", "_measured", "_false_accepts", "_jumped", "_withdrawn")
