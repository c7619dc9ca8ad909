"""The hybrid method: real gradient steps with predicted steps between them. It imports torch but never ray."""

from hybrid_ray.method.guard.divergence import Level
from hybrid_ray.method.phases import Phase
from hybrid_ray.method.trainer import HybridTrainer

__all__ = ["HybridTrainer", "Level", "Phase"]
