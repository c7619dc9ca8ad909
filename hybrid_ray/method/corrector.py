"""How much of a predicted displacement to apply, learnt from what real steps said about the last one."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Corrector"]

_SHORTEST, _LONGEST = 0.125, 2.0


class Corrector:
    """One factor a parameter group, by residual feedback.

    The real steps after a prediction move by d_act a step, the predicted ones by d_pred. The residual d_act - d_pred,
    projected on d_pred, is (alpha* - 1) d_pred: the predicted step should have been alpha* times as long. The group's
    factor moves by ``rho`` towards that: f <- f (1 + rho (alpha* - 1)), within [1/8, 2].

    The usual rule, m <- m + rho r with r = d_act - alpha* d_pred, has the other part of the residual: its r is at right
    angles to d_pred, so it turns the average m and leaves its length. Here the average itself does that: the window
    that r comes from is the newest in it (a larger share for it is a shorter ``time_constant``).

    With ``rho`` above 0 the configured ``gain`` is only where the length starts. The factor comes to rest where alpha*
    is 1, so that factor x gain no longer depends on the gain: where the plain average has the right length, at 1/gain.
    ``outer_lr`` of snoo is overruled in the same way.

    Measured (``benchmarks/corrector.py``: nano, 400 steps, 5 paired seeds, rho 0.3; with it / without it, 95 %):

    | gain | prediction error | training loss of the last fifth |
    |---|---|---|
    | 1.0 | 0.950 (0.945 to 0.954) | 0.9977 (0.9964 to 0.9990) |
    | 0.6 | 0.985 (0.983 to 0.986) | 0.9989 (0.9986 to 0.9991) |

    So it does make the next prediction better. It is off by default all the same, because it steers the step to alpha*
    whatever ``gain`` says, and then there is no studying the gain.

    The sign of g.d after a prediction does not shorten the next one, it only lowers confidence. Halving the step after
    an overshoot was tried on nano (1000 steps, horizon 3, gain 0.6, 3 seeds, paired): the last losses were 0.5 % higher
    with it (95 %: 0.1 to 0.9). One batch's gradient is no measure of length: it pointed back after 166 of 243 jumps.

    Args:
        groups: parameter groups.
        rho: 0 leaves the factors at 1.
    """

    def __init__(self, groups: int, *, rho: float) -> None:
        self._rho = rho
        self.factors = [1.0] * groups

    def observe_window(self, alpha_by_group: Sequence[float]) -> None:
        """Take in alpha* by group of a finished window."""
        self.factors = [
            min(_LONGEST, max(_SHORTEST, factor * (1.0 + self._rho * (alpha - 1.0))))
            for factor, alpha in zip(self.factors, alpha_by_group, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"factors": self.factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factors = list(state["factors"])
