"""Per coordinate, reduce a step along a slow average where the average is unreliable."""

from collections.abc import Mapping
from typing import Any

import torch

from hybrid_ray.method.weights import local_part

__all__ = ["restrain_"]


def restrain_(step: torch.Tensor, state: Mapping[str, Any], *, kind: str, decay: float) -> torch.Tensor:
    """Shrink a step u = q / (sqrt(v) + eps), in place.

    - ``sign``: set u to 0 where the slow average q and the optimizer's own fast average have different signs (cautious
      optimizers, arXiv 2411.16085, compare with the gradient). So the step ignores q where the gradient has changed
      sign recently and q still lags behind.
    - ``shrink``: multiply u by max(0, 1 - 1 / (n u^2)), the James-Stein factor, with n = (1 + rho) / (1 - rho), the
      effective number of gradients in q. For pure noise the mean of n u^2 is 1, so such a coordinate hardly moves.
      If all gradients agree, n u^2 is n.

    Args:
        state: the optimizer's state of this parameter.
        decay: rho, the decay of the slow average.
    """
    if kind == "sign":
        return step.mul_(step * local_part(state["exp_avg"]).to(step.device) > 0.0)
    averaged = (1.0 + decay) / (1.0 - decay)
    return step.mul_(1.0 - 1.0 / (averaged * step.square()).clamp_min_(1.0))
