"""How far to trust predictions, as one number in [0, 1] that is computed from the weights, not only from the loss."""

from typing import Any

from hybrid_ray.method.gate.agreement import Agreement
from hybrid_ray.method.guard.divergence import Level

__all__ = ["Confidence"]

_NEWEST = 0.5  # weight of the newest cycle in every average over cycles
_LEAST_CEILING = 0.05
_STABILITY = {Level.NORMAL: 1.0, Level.CAUTION: 0.8, Level.WARNING: 0.5, Level.CRITICAL: 0.0}


class Confidence:
    """confidence = agreement x length x (1 - overshoots / 2) x stability, each in [0, 1], averaged over cycles.

    - agreement = clamp(max(0, cos) / sqrt(max(ceiling, 0.05)), 0, 1): cos compares the displacement of one predicted
      step with that of the real steps after it. Noise in a window lowers its cosine with any forecast. The ceiling is
      the window's reliability, which limits the cosine; the quotient is the correlation corrected for that noise
      (Spearman 1904; docs/method.md, section 3).
    - length = clamp(2 alpha*, 0, 1): below 1 if the predicted step is more than twice as long as it should be.
    - overshoots: the share of predictions after which the gradient pointed back (g.d > 0).
    - stability: 1, 0.8, 0.5, 0 for the worst divergence level of the cycle.

    Full windows before the first prediction count too: they are compared with a forecast that was not applied. Before
    the first comparison the confidence is 0.
    """

    def __init__(self) -> None:
        self.agreement: float | None = None
        self.ceiling: float | None = None
        self.length: float | None = None
        self.overshoots = 0.0
        self.stability = 1.0

    @property
    def value(self) -> float:
        if self.agreement is None or self.length is None:
            return 0.0
        return self.agreement * self.length * (1.0 - self.overshoots / 2.0) * self.stability

    def observe_window(self, measured: Agreement | None, worst: Level) -> None:
        """Update with a finished window; ``worst`` is the highest divergence level in it."""
        self.stability = _STABILITY[worst]
        if measured is None:
            return
        if measured.ceiling is not None:
            self.ceiling = _average(self.ceiling, max(0.0, measured.ceiling))
        most = max(self.ceiling or 0.0, _LEAST_CEILING)
        self.agreement = _average(self.agreement, min(1.0, max(0.0, measured.cosine) / most**0.5))
        self.length = _average(self.length, min(1.0, max(0.0, 2.0 * measured.alpha)))

    def observe_jump(self, *, overshot: bool) -> None:
        """Update with the sign of the first real gradient after a prediction."""
        self.overshoots = _average(self.overshoots, float(overshot))

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def _average(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
