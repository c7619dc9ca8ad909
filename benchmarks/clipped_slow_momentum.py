"""An experiment of ``findings.py``: slow momentum whose jumps are at most so many times as long as the real steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_ray.method.predictors.slow_momentum import SlowMomentum
from hybrid_ray.method.weights import local_part

__all__ = ["ClippedSlowMomentum"]


@dataclass(frozen=True, kw_only=True)
class Options:
    alpha: float = 8.0
    beta3: float = 0.996
    caution: str = "none"
    matrices: str = "second_moment"
    longest: float = 1.0


class ClippedSlowMomentum(SlowMomentum):
    """D of each tensor is shortened to ``longest`` x K x |AdamW's last step without weight decay|, if it is longer.

    That step is computed from AdamW's state, so the rule needs no buffer. For one process; reads AdamW's state only.
    """

    Options = Options
    options: Any

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        super().write_direction(horizon, factors, norms)
        assert self.direction is not None
        groups, steps = self.optimizer.param_groups, min(self.since, self._most)
        ratios = []
        for number, (parameter, place) in enumerate(zip(self.weights.parameters, self.weights.group_of, strict=True)):
            state, group = self.optimizer.state.get(parameter, {}), groups[place]
            if not state:
                ratios.append(1.0)
                continue
            first, second = group["betas"]
            root = (local_part(state["exp_avg_sq"]) / (1.0 - second ** state["step"])).sqrt_().add_(group["eps"])
            size = (local_part(state["exp_avg"]) / root).norm() / (1.0 - first ** state["step"])
            most = self.options.longest * steps * self.rates[place] * float(size)
            length = float(torch.linalg.vector_norm(self.direction.tensors[number]))
            ratios.append(min(1.0, most / length) if length else 1.0)
        self.direction.multiply_(ratios)
