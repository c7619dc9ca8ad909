"""The hybrid method: real gradient steps, and predicted ones between them. Imports torch, never ray."""

from hybrid_ray.hybrid.clock import StepClock
from hybrid_ray.hybrid.divergence import DivergenceMonitor, Level, Recovery
from hybrid_ray.hybrid.phases import Phase
from hybrid_ray.hybrid.step_result import StepResult
from hybrid_ray.hybrid.trainer import HybridTrainer

__all__ = ["DivergenceMonitor", "HybridTrainer", "Level", "Phase", "Recovery", "StepClock", "StepResult"]
