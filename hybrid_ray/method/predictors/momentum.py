"""Coasting: continue with the optimizer's own momentum, without gradients. An ablation, not a recommended method.

Adam spreads the effect of a gradient over about 1/(1 - beta1) later updates; coasting applies these updates early and
predicts nothing new. It shows which part of a gain has only this cause.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybrid_ray.config.predictors import MomentumOptions
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors.base import Predictor
from hybrid_ray.method.weights import local_part

__all__ = ["Momentum"]


class Momentum(Predictor):
    """D = the sum of H updates of Adam, AdamW or SGD with momentum, with a gradient of zero and no weight decay.

    The optimizer's state is read but not changed. One buffer (D): 4 bytes per parameter in fp32. Before the optimizer's
    first step D is zero.

    Raises:
        ConfigError: the optimizer is another one, or SGD without momentum.
    """

    Options = MomentumOptions
    options: MomentumOptions

    def prepare(self) -> None:
        optimizer = self.optimizer
        kind = type(optimizer).__name__
        adam = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
        momentum = isinstance(optimizer, torch.optim.SGD) and all(g["momentum"] > 0.0 for g in optimizer.param_groups)
        if not adam and not momentum:
            raise ConfigError(f"predictor momentum needs Adam, AdamW or SGD with momentum but the optimizer is {kind}")
        self._updates = _adam_updates if adam else _sgd_updates

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        groups = self.optimizer.param_groups
        for number, (parameter, group) in enumerate(zip(self.weights.parameters, self.weights.group_of, strict=True)):
            state = self.optimizer.state.get(parameter)
            update = self._updates(state, groups[group], horizon) if state else None
            self.direction.put(number, None if update is None else update.mul_(self.options.gain * factors[number]))


def _adam_updates(state: Mapping[str, Any], group: Mapping[str, Any], horizon: int) -> torch.Tensor:
    """Sum over j = 1..H of -lr m_j / (sqrt(v_j) + eps), m_j, v_j decayed j times and bias-corrected for step t + j."""
    beta1, beta2 = map(float, group["betas"])
    rate, step = float(group["lr"]), float(state["step"])
    mean = local_part(state["exp_avg"]).float()
    square = local_part(state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"])
    root = square.float().sqrt()
    total = torch.zeros_like(mean)
    for ahead in range(1, horizon + 1):
        decay = 1.0 if group["amsgrad"] else beta2 ** (ahead / 2.0)
        scale = decay / (1.0 - beta2 ** (step + ahead)) ** 0.5
        size = rate * beta1**ahead / (1.0 - beta1 ** (step + ahead))
        total.addcdiv_(mean, root.mul(scale).add_(float(group["eps"])), value=-size)
    return total.neg_() if group["maximize"] else total


def _sgd_updates(state: Mapping[str, Any], group: Mapping[str, Any], horizon: int) -> torch.Tensor | None:
    """Sum over j = 1..H of -lr mu^j b; with Nesterov momentum (update g + mu b) the sum of -lr mu^(j+1) b."""
    if state.get("momentum_buffer") is None:
        return None
    momentum, rate = float(group["momentum"]), float(group["lr"])
    first = 2 if group["nesterov"] else 1
    size = rate * sum(momentum**power for power in range(first, first + horizon))
    return local_part(state["momentum_buffer"]).float().mul(size if group["maximize"] else -size)
