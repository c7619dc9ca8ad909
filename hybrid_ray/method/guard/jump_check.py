"""Checks that predictions persist in the weights. An optimizer that keeps its own copy of the weights undoes them."""

from typing import Any

import torch

from hybrid_ray.errors import UnsupportedOptimizer
from hybrid_ray.method.gate.agreement import AgreementMeter

__all__ = ["JumpCheck"]

_JUMPS = 3  # undone jumps, with none that persisted, after which the optimizer is refused


class JumpCheck:
    """Examines the first real step after a prediction, on the sampled coordinates.

    An optimizer that keeps its own copy of the weights (in fp32, or an average) writes w + step from its own w, so the
    step also moves back by the whole jump J. Let p = <move, J> / |J|^2, and c the same for a typical real step. Then
    p - c is about 0 for a jump that persists and about -1 for one that is undone; values in between are inconclusive. A
    gradient that points back along J has the same effect, so such a step does not count. A jump that is shorter than a
    real step does not count either.

    The first jump that persists shows that the optimizer keeps predictions; nothing is measured after it.
    """

    def __init__(self) -> None:
        self.predicted = 0  # predicted steps since the last real step
        self.undone = 0  # jumps that the optimizer undid
        self.sound = False

    @property
    def due(self) -> bool:
        return self.predicted > 0 and not self.sound

    def observe(
        self, agreement: AgreementMeter, before: torch.Tensor, after: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check a real step that moved the sample from ``before``, the result of the prediction, to ``after``.

        Raises:
            UnsupportedOptimizer: if it undid this jump and the earlier ones.
        """
        sizes = agreement.against_jump(after - before, self.predicted)
        if sizes is None or sizes.jump < min(sizes.move, sizes.return_):
            return  # a jump shorter than a step cannot be told from the step's noise
        share = sizes.along - sizes.usual
        if share > -0.25:
            self.sound = True
        elif -1.5 < share < -0.6:
            self.undone += 1
            if self.undone == _JUMPS:
                raise UnsupportedOptimizer(
                    f"{type(optimizer).__name__} undid {_JUMPS} of the first predictions: it keeps weights of its own "
                    "(a copy in fp32, an average) and writes them over the model's; use an optimizer that steps from "
                    "the model's weights, or predictor none"
                )

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
