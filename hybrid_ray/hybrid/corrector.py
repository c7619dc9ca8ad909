"""How much of a predicted displacement to apply, learnt from what real gradients said about the last one."""

from collections.abc import Sequence
from typing import Any

__all__ = ["Corrector"]

_SHORTEST, _LONGEST = 0.125, 2.0


class Corrector:
    """One factor a parameter group, from two sources.

    *Overshoot*: if the first gradient after a prediction points back along it (g.d > 0), the group's factor is halved;
    if not, it doubles again, up to 1.

    *Residual feedback* (``rho`` > 0): the residual r = d_act - d_pred of the real steps after a prediction, projected
    on d_pred, says the predicted step should have been alpha* times as long; the group's length moves by rho towards
    that. This is the part of m <- m + rho r that one number a group can carry. The part of r across d_pred is fed back
    by the displacement average itself, in which the window that r comes from is the newest (a larger share for it is a
    shorter ``time_constant``).

    Args:
        groups: parameter groups.
        rho: 0 leaves residual feedback out.
    """

    def __init__(self, groups: int, *, rho: float) -> None:
        self._rho = rho
        self.caution = [1.0] * groups
        self.length = [1.0] * groups

    @property
    def factors(self) -> list[float]:
        return [caution * length for caution, length in zip(self.caution, self.length, strict=True)]

    def observe_gradient(self, along: Sequence[float]) -> bool:
        """Take in g.d by group of the first real step after predicted ones. Returns whether the whole overshot."""
        self.caution = [
            max(_SHORTEST, caution / 2.0) if product > 0.0 else min(1.0, caution * 2.0)
            for caution, product in zip(self.caution, along, strict=True)
        ]
        return sum(along) > 0.0

    def observe_window(self, alpha_by_group: Sequence[float]) -> None:
        """Take in alpha* by group of a finished window."""
        self.length = [
            min(_LONGEST, max(_SHORTEST, length * (1.0 + self._rho * (alpha - 1.0))))
            for length, alpha in zip(self.length, alpha_by_group, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"caution": self.caution, "length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.caution, self.length = list(state["caution"]), list(state["length"])
