"""Learning-rate schedules over the length of a run: warmup is a share of it, and the decay ends at its last step."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hybrid_ray.config import TrainConfig

__all__ = ["build_schedule", "learning_rate_factor"]


def learning_rate_factor(done: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate in the step after ``done`` nominal steps.

    Linear warmup reaches 1 in the last warmup step; the decay reaches ``min_lr_ratio`` exactly in step ``steps`` and
    stays there. Runs of different lengths are comparable only if each has decayed fully (docs/method.md, section 4).
    """
    warmup = round(config.lr_warmup_fraction * config.steps)
    step = done + 1
    if step <= warmup:
        return step / warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / (config.steps - warmup))
    falling = 0.5 * (1.0 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * falling


def build_schedule(optimizer: Optimizer, config: TrainConfig) -> LambdaLR:
    """The run's schedule. Call ``scheduler.step()`` once per nominal step, after ``optimizer.step()``."""
    return LambdaLR(optimizer, lambda done: learning_rate_factor(done, config))
