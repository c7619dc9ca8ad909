"""Whether a prediction stays in the weights. An optimizer that keeps weights of its own would undo each one."""

from typing import Any

import torch

from hybrid_ray.errors import UnsupportedOptimizer
from hybrid_ray.method.gate.agreement import AgreementMeter

__all__ = ["JumpCheck"]

_JUMPS = 3  # undone, and none that stayed: the optimizer is refused


class JumpCheck:
    """Looks at the first real step after a prediction, on the sampled coordinates.

    An optimizer that holds the weights itself (a copy in fp32, an average) writes w + step from its own w, so the step
    moves back by the whole jump J. With p = <move, J> / |J|^2 and c the same of a usual real step, p - c is about 0
    for a jump that stays and about -1 for one that is undone; what lies between says nothing. A gradient that points
    back along J can do the same, so such a step does not count; nor does a jump that is shorter than a real step.

    The first jump that stays proves the optimizer sound; nothing is measured after it.
    """

    def __init__(self) -> None:
        self.predicted = 0  # steps since the last real one
        self.undone = 0  # jumps
        self.sound = False

    @property
    def due(self) -> bool:
        return self.predicted > 0 and not self.sound

    def observe(
        self, agreement: AgreementMeter, before: torch.Tensor, after: torch.Tensor, optimizer: torch.optim.Optimizer
    ) -> None:
        """A real step moved the sample from ``before``, where the prediction had led, to ``after``.

        Raises:
            UnsupportedOptimizer: if it undid this jump, as earlier ones.
        """
        sizes = agreement.against_jump(after - before, self.predicted)
        if sizes is None or sizes.jump < min(sizes.move, sizes.return_):
            return  # shorter than a step: lost in its noise
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
