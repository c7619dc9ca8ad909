"""The hybrid method: real gradient steps with predicted steps between them. It imports torch but never ray."""

from hybrid_ray.method.guard.divergence import DivergenceMonitor, Level, Recovery
from hybrid_ray.method.phases import Phase
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.step_result import StepResult
from hybrid_ray.method.trainer import HybridTrainer

__all__ = ["DivergenceMonitor", "HybridTrainer", "Level", "Phase", "Recovery", "StepClock", "StepResult"]
