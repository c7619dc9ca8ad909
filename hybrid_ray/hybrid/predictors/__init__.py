"""Predictors: what moves the weights on a step without a gradient. One file each, behind one protocol (base.py)."""

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.hybrid.predictors.base import Predictor
from hybrid_ray.hybrid.predictors.ema_nesterov import EmaNesterov
from hybrid_ray.hybrid.predictors.nothing import Nothing
from hybrid_ray.hybrid.weights import Weights

__all__ = ["EmaNesterov", "Nothing", "Predictor", "build_predictor"]


def build_predictor(weights: Weights, optimizer: torch.optim.Optimizer, config: HybridConfig) -> Predictor | None:
    """The predictor that ``config.predictor`` names; None for ``off``."""
    if config.predictor == "off":
        return None
    kinds: dict[str, type[Predictor]] = {"ema_nesterov": EmaNesterov, "nothing": Nothing}
    return kinds[config.predictor](weights, config)
