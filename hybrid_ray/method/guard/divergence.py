"""Watches a run for divergence and recommends a recovery. Pure Python without torch: about 10 us per real step.

`DivergenceMonitor` collects the alarms that ``signals.py`` raises about the loss, the gradient norm and the prediction
error, and any non-finite numbers. It then chooses one of eight recoveries. It only advises: ``recovery.py`` decides
which recoveries a run carries out, and ``health.py`` does so. All ranks pass the same all-reduced numbers and
therefore get the same advice.

A sudden rise of the loss has different causes. On the first five real steps after a prediction, the likely cause is
that the predicted move *overshot*; the remedy is to undo it and predict less. Without a recent prediction the cause is
the batch or the learning rate; the remedy is to skip the batch, or to train with real steps only.

The table gives the recommendation by how often the same kind of trouble asked for a recovery in the last 200
observations. ``near`` means that a prediction was applied at most 5 real steps ago. After the last entry of a row, that
entry repeats:

| found | 1st | 2nd | 3rd | 4th | 5th |
|---|---|---|---|---|---|
| nothing; Caution with no prediction just before | Continue | | | | |
| Caution right after a prediction, or in its error | ReducePredictRatio | | | | |
| Warning, near | Rollback | RaiseThreshold | ResetPredictor | | |
| Warning, one bad step, not near | SkipBatch | SkipBatch | ForceFull | | |
| Warning that lasts, not near; vanishing gradients | ForceFull | ForceFull | ResetPredictor | | |
| Critical, near | Rollback | ResetPredictor | ForceFull | ForceFull | Abort |
| Critical, not near | SkipBatch if one step, else ForceFull | ResetPredictor | ForceFull | ForceFull | Abort |
| not finite: loss or gradient, near | Rollback | ForceFull | ResetPredictor | ForceFull | Abort |
| not finite: loss or gradient, not near | SkipBatch | ForceFull | ResetPredictor | ForceFull | Abort |
| not finite: predicted update | ResetPredictor | ResetPredictor | ForceFull | ForceFull | Abort |

A recovery is given time to work: for the 10 observations after it, the level is still reported, but only a higher
level than before or a non-finite number leads to another action.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from hybrid_ray.method.guard.signals import (
    Alarm,
    GradientSignal,
    Level,
    LossSignal,
    PredictionSignal,
)

__all__ = ["Assessment", "DivergenceMonitor", "Level", "Recovery"]

NEAR = 5  # real steps after a prediction during which trouble is attributed to it
PATIENCE = 10  # observations during which a recovery is given time to work
MEMORY = 200  # observations after which a recovery no longer counts towards the next, stronger one


class Recovery(StrEnum):
    """What the trainer should do now. From FORCE_FULL on, every action also ends the cycle: the next phase is Full.

    A non-finite number is never applied, whatever the action.
    """

    CONTINUE = "continue"
    REDUCE_PREDICT_RATIO = "reduce_predict_ratio"  # use a shorter horizon next time
    FORCE_FULL = "force_full"
    ROLLBACK = "rollback"  # undo the last prediction in place
    RAISE_THRESHOLD = "raise_threshold"  # require more confidence
    SKIP_BATCH = "skip_batch"  # do not apply this real step's update
    RESET_PREDICTOR = "reset_predictor"  # discard the averaged displacement
    ABORT = "abort"  # raise Diverged


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """The result of one observation: the worst level found, the reasons, and what to do now."""

    level: Level
    reasons: tuple[str, ...]
    recovery: Recovery


_HEALTHY = Assessment(level=Level.NORMAL, reasons=(), recovery=Recovery.CONTINUE)

# The table above. Kinds of trouble that share the part before the colon escalate together.
_LADDERS: dict[str, tuple[Recovery, ...]] = {
    kind: tuple(map(Recovery, actions.split()))
    for kind, actions in {
        "overshoot": "rollback raise_threshold reset_predictor",
        "bad_step": "skip_batch skip_batch force_full",
        "lasting": "force_full force_full reset_predictor",
        "critical:near": "rollback reset_predictor force_full force_full abort",
        "critical:single": "skip_batch reset_predictor force_full force_full abort",
        "critical:lasting": "force_full reset_predictor force_full force_full abort",
        "nonfinite:near": "rollback force_full reset_predictor force_full abort",
        "nonfinite:single": "skip_batch force_full reset_predictor force_full abort",
        "nonfinite:update": "reset_predictor reset_predictor force_full force_full abort",
    }.items()
}


class DivergenceMonitor:
    """Assesses a run, one observation at a time. The module's table lists the recoveries.

    Args:
        sigma: number of standard deviations above its trend at which the loss raises Caution. Larger values tolerate
            more.
    """

    def __init__(self, sigma: float = 2.5) -> None:
        if not (math.isfinite(sigma) and sigma > 0.0):
            raise ValueError(f"sigma is {sigma} but must be a number above 0; 2.5 is the default")
        self.loss = LossSignal(sigma)
        self.gradient = GradientSignal(sigma)
        self.prediction = PredictionSignal(sigma)
        self.clock = 0  # observations so far
        self.since_prediction: int | None = None  # real steps since a prediction; None: no prediction, or undone
        self.strikes: list[tuple[int, str]] = []  # clock and family of recent recoveries
        self.last_recovery: tuple[int, Level] | None = None

    def observe_real(self, loss: float, grad_norm: float, *, after_prediction: bool) -> Assessment:
        """Assess a real step, after its gradients are computed and before its update is applied.

        Args:
            loss: of the whole batch, over all ranks. A loss or norm that is not finite counts as `observe_nonfinite`.
            grad_norm: over all ranks, before clipping.
            after_prediction: the first real step since weights were predicted.
        """
        if not math.isfinite(loss):
            return self.observe_nonfinite("loss", after_prediction=after_prediction)
        if not math.isfinite(grad_norm):
            return self.observe_nonfinite("gradient", after_prediction=after_prediction)
        self._tick(after_prediction)
        z, alarms = self.loss.observe(loss, after_prediction=after_prediction)
        alarms.extend(self.gradient.observe(grad_norm, loss_jumped=z > 3.2 * self.loss.sigma))
        return self._assess(alarms, after_prediction) if alarms else _HEALTHY

    def observe_prediction(self, error: float) -> Assessment:
        """Assess the relative error of a finished cycle's prediction: |actual - predicted| / |actual| displacement."""
        if not math.isfinite(error):
            return self.observe_nonfinite("update")
        alarms = list(self.prediction.observe(error))
        return self._assess(alarms, after_prediction=True) if alarms else _HEALTHY

    def observe_nonfinite(
        self, what: Literal["loss", "gradient", "update"], *, after_prediction: bool = False
    ) -> Assessment:
        """Assess a NaN or Inf found before it was applied. ``update`` is a predicted update."""
        self._tick(after_prediction)
        kind = "update" if what == "update" else "near" if self.near_prediction else "single"
        recovery = self._escalate(f"nonfinite:{kind}")
        level = Level.WARNING if recovery is _LADDERS[f"nonfinite:{kind}"][0] else Level.CRITICAL
        self._act(recovery, level)
        return Assessment(level=level, reasons=(f"{what} is not finite",), recovery=recovery)

    @property
    def near_prediction(self) -> bool:
        """Whether the last prediction may have caused what happens now."""
        return self.since_prediction is not None and self.since_prediction < NEAR

    def _tick(self, after_prediction: bool) -> None:
        self.clock += 1
        if after_prediction:
            self.since_prediction = 0
        elif self.since_prediction is not None:
            self.since_prediction += 1

    def _assess(self, alarms: Iterable[Alarm], after_prediction: bool) -> Assessment:
        worst, *rest = sorted(alarms, key=lambda alarm: -alarm.level.rank)
        reasons = (worst.reason, *(alarm.reason for alarm in rest))
        recovery = Recovery.CONTINUE
        if worst.level is Level.CAUTION:
            if after_prediction:
                recovery = Recovery.REDUCE_PREDICT_RATIO
        elif self._may_act(worst.level):
            recovery = self._escalate(self._kind(worst))
            self._act(recovery, worst.level)
        return Assessment(level=worst.level, reasons=reasons, recovery=recovery)

    def _kind(self, worst: Alarm) -> str:
        """The key in ``_LADDERS`` for the worst alarm."""
        if worst.level is Level.CRITICAL:
            return (
                "critical:near" if self.near_prediction else "critical:single" if worst.single else "critical:lasting"
            )
        if self.near_prediction and worst.cause != "vanishing":
            return "overshoot"
        return "bad_step" if worst.single else "lasting"

    def _may_act(self, level: Level) -> bool:
        if self.last_recovery is None:
            return True
        clock, before = self.last_recovery
        return self.clock - clock >= PATIENCE or level.rank > before.rank

    def _escalate(self, kind: str) -> Recovery:
        """Record a strike and return the next recovery for this kind of trouble."""
        family = kind.partition(":")[0]
        self.strikes = [(clock, name) for clock, name in self.strikes if self.clock - clock < MEMORY]
        ladder = _LADDERS[kind]
        rung = sum(name == family for _, name in self.strikes)
        self.strikes.append((self.clock, family))
        return ladder[min(rung, len(ladder) - 1)]

    def _act(self, recovery: Recovery, level: Level) -> None:
        """Note a recovery and clear the recent values, so that the losses that led to it do not trigger another."""
        self.last_recovery = (self.clock, level)
        if recovery is Recovery.ROLLBACK:
            self.since_prediction = None
        self.loss.forget_recent()
        self.gradient.forget_recent()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next assessment depends on, ready for JSON."""
        return {
            "loss": self.loss.state_dict(),
            "gradient": self.gradient.state_dict(),
            "prediction": self.prediction.state_dict(),
            "clock": self.clock,
            "since_prediction": self.since_prediction,
            "strikes": [list(strike) for strike in self.strikes],
            "last_recovery": None
            if self.last_recovery is None
            else [self.last_recovery[0], str(self.last_recovery[1])],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss.load_state_dict(state["loss"])
        self.gradient.load_state_dict(state["gradient"])
        self.prediction.load_state_dict(state["prediction"])
        self.clock = int(state["clock"])
        self.since_prediction = state["since_prediction"]
        self.strikes = [(int(clock), str(family)) for clock, family in state["strikes"]]
        last = state["last_recovery"]
        self.last_recovery = None if last is None else (int(last[0]), Level(last[1]))
