"""Predictors: what moves the weights on a step without a gradient. One idea a file, behind one protocol (base.py)."""

import torch

from hybrid_ray.config import HybridConfig, PredictorName
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors.base import Predictor
from hybrid_ray.method.predictors.controls import RandomDirection, Reversed
from hybrid_ray.method.predictors.ema_nesterov import EmaNesterov
from hybrid_ray.method.predictors.linear_fit import LinearFit
from hybrid_ray.method.predictors.momentum import Momentum
from hybrid_ray.method.predictors.slow_momentum import SlowMomentum
from hybrid_ray.method.predictors.snoo import Snoo
from hybrid_ray.method.predictors.zero import Zero
from hybrid_ray.method.weights import Weights

__all__ = [
    "EmaNesterov",
    "LinearFit",
    "Momentum",
    "Predictor",
    "RandomDirection",
    "Reversed",
    "SlowMomentum",
    "Snoo",
    "Zero",
    "build_predictor",
]

_KINDS: dict[PredictorName, type[Predictor]] = {
    "snoo": Snoo,
    "linear_fit": LinearFit,
    "zero": Zero,
    "random": RandomDirection,
    "reversed": Reversed,
}


def build_predictor(
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    config: HybridConfig,
    *,
    total_steps: int | None = None,
    seed: int = 0,
) -> Predictor | None:
    """The predictor that ``config.predictor`` names; None for ``none``.

    Raises:
        ConfigError: if it can't work with this optimizer.
    """
    if config.predictor == "none":
        return None
    if config.predictor == "ema_nesterov":
        return EmaNesterov(weights, config, total_steps=total_steps, seed=seed)
    if config.predictor == "momentum":
        return Momentum(weights, config, optimizer, seed=seed)
    if config.predictor == "slow_momentum":
        if total_steps is None:
            raise ConfigError(
                "predictor slow_momentum needs total_steps, since alpha and its average grow over the run: give it to "
                "HybridTrainer"
            )
        return SlowMomentum(weights, config, optimizer, seed=seed)
    return _KINDS[config.predictor](weights, config, seed=seed)
