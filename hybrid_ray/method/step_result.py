"""The result of one nominal step."""

from dataclasses import dataclass

from hybrid_ray.method.guard.divergence import Level
from hybrid_ray.method.phases import Phase

__all__ = ["StepResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What `HybridTrainer.step` returns."""

    phase: Phase
    predicted: bool
    loss: float | None  # mean over micro-batches and ranks, at the weights before the update; None if predicted
    confidence: float | None  # after this step; None: no decision needs one, so it is not computed
    grad_norm: float | None  # over all ranks, before clipping; None if predicted
    level: Level  # of the last real step
    event: str | None  # a recovery and its reasons, an overshoot, or changed parameters
