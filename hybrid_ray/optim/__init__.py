"""Optimizers and learning-rate schedules."""

from hybrid_ray.optim.ademamix import AdEMAMix
from hybrid_ray.optim.build import build_optimizer
from hybrid_ray.optim.own import check_own_optimizer
from hybrid_ray.optim.prune import AdamWPrune
from hybrid_ray.optim.schedule import build_schedule, learning_rate_factor
from hybrid_ray.optim.spam import AdamWSPAM

__all__ = [
    "AdEMAMix",
    "AdamWPrune",
    "AdamWSPAM",
    "build_optimizer",
    "build_schedule",
    "check_own_optimizer",
    "learning_rate_factor",
]
