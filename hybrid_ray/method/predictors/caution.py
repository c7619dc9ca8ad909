"""Of a step along a slow average, the part that can be believed, coordinate by coordinate."""

from collections.abc import Mapping
from typing import Any

import torch

from hybrid_ray.method.weights import local_part

__all__ = ["restrain_"]


def restrain_(step: torch.Tensor, state: Mapping[str, Any], *, kind: str, decay: float) -> torch.Tensor:
    """Shrink a step u = q / (sqrt(v) + eps), in place.

    - ``sign``: 0 where the slow average q and the fast one, the optimizer's own, point in different directions
      (cautious optimizers, arXiv 2411.16085, compare with the gradient). An average that lags behind a swing is not
      followed.
    - ``shrink``: times max(0, 1 - 1 / (n u^2)), the James-Stein factor. Of pure noise, an average of n = (1 + rho) /
      (1 - rho) gradients has n u^2 = 1 on average: such a coordinate says nothing and stays. One whose gradients agree
      has n times as much.

    Args:
        state: of the optimizer.
        decay: rho.
    """
    if kind == "sign":
        return step.mul_(step * local_part(state["exp_avg"]).to(step.device) > 0.0)
    averaged = (1.0 + decay) / (1.0 - decay)
    return step.mul_(1.0 - 1.0 / (averaged * step.square()).clamp_min_(1.0))
