"""How well windows of real steps agree with their forecasts, as one number in [0, 1]."""

from typing import Any

from hybrid_ray.method.gate.agreement import Agreement

__all__ = ["AgreementScore"]

_NEWEST = 0.5  # weight of the newest cycle in every average over cycles
_LEAST_CEILING = 0.05


class AgreementScore:
    """score = agreement x length x (1 - overshoots / 2), each in [0, 1], averaged over cycles.

    It says whether a forecast was right about the weights, which is not whether a jump pays: on the plain path of a
    600-step run its rank correlation with the jump's benefit was -0.33. It is one feature of many.

    - agreement = clamp(max(0, cos) / sqrt(max(ceiling, 0.05)), 0, 1): cos compares the displacement of one predicted
      step with that of the real steps after it. Noise in a window lowers its cosine with any forecast. The ceiling is
      the window's reliability, which limits the cosine; the quotient is the correlation corrected for that noise
      (Spearman 1904; docs/method.md, section 3).
    - length = clamp(2 alpha*, 0, 1): below 1 if the predicted step is more than twice as long as it should be.
    - overshoots: the share of predictions after which the gradient pointed back (g.d > 0).

    Full windows before the first prediction count too: they are compared with a forecast that was not applied. Before
    the first comparison the score is 0.
    """

    def __init__(self) -> None:
        self.agreement: float | None = None
        self.ceiling: float | None = None
        self.length: float | None = None
        self.overshoots = 0.0

    @property
    def value(self) -> float:
        if self.agreement is None or self.length is None:
            return 0.0
        return self.agreement * self.length * (1.0 - self.overshoots / 2.0)

    def observe_window(self, measured: Agreement) -> None:
        """Update with a finished window."""
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
