"""How much of a predicted displacement to apply, learnt by comparing the last prediction with real steps."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Corrector"]

_SHORTEST, _LONGEST = 0.125, 2.0


class Corrector:
    """One length factor for each parameter group, adjusted by residual feedback.

    Each real step after a prediction moves the weights by d_act, and each predicted step moves them by d_pred. The
    residual d_act - d_pred, projected on d_pred, is (alpha* - 1) d_pred: the predicted step should have been alpha*
    times as long. The update moves the group's factor by ``rho`` towards that: f <- f (1 + rho (alpha* - 1)), within
    [1/8, 2].

    The usual rule, m <- m + rho r with r = d_act - alpha* d_pred, uses the other part of the residual. That r is
    orthogonal to d_pred, so it changes the direction of the average m but not its length. Here the average itself
    changes the direction, because it already includes the window that r comes from (a shorter ``time_constant`` gives
    that window a larger share).

    With ``rho`` above 0 the configured ``gain`` only sets the initial length. The factor converges to the point where
    alpha* is 1, so factor x gain no longer depends on the gain. If the plain average already has the right length, the
    factor converges to 1/gain. The feedback overrides ``outer_lr`` of snoo in the same way.

    Measured (``benchmarks/corrector.py``: nano, 400 steps, 5 paired seeds, rho 0.3; with it / without it, 95 %):

    | gain | prediction error | training loss of the last fifth |
    |---|---|---|
    | 1.0 | 0.950 (0.945 to 0.954) | 0.9977 (0.9964 to 0.9990) |
    | 0.6 | 0.985 (0.983 to 0.986) | 0.9989 (0.9986 to 0.9991) |

    So the feedback improves the next prediction. It is still off by default, because it adjusts the step to alpha*
    whatever ``gain`` is, which would make the effect of the gain impossible to study.

    The sign of g.d after a prediction only lowers confidence; it does not shorten the next prediction. We tried halving
    the step after an overshoot on nano (1000 steps, horizon 3, gain 0.6, 3 seeds, paired): the final losses were 0.5 %
    higher (95 %: 0.1 to 0.9). One batch's gradient does not measure the length: it pointed back after 166 of 243 jumps.

    Args:
        groups: number of parameter groups.
        rho: rate of the feedback; 0 leaves the factors at 1.
    """

    def __init__(self, groups: int, *, rho: float) -> None:
        self._rho = rho
        self.factors = [1.0] * groups

    def observe_window(self, alpha_by_group: Sequence[float]) -> None:
        """Update the factors with alpha* of each group, measured over a finished window."""
        self.factors = [
            min(_LONGEST, max(_SHORTEST, factor * (1.0 + self._rho * (alpha - 1.0))))
            for factor, alpha in zip(self.factors, alpha_by_group, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"factors": self.factors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factors = list(state["factors"])
