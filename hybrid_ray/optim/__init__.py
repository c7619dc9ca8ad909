"""Optimizers and learning-rate schedules."""

from hybrid_ray.optim.build import build_optimizer
from hybrid_ray.optim.schedule import build_schedule, learning_rate_factor

__all__ = ["build_optimizer", "build_schedule", "learning_rate_factor"]
