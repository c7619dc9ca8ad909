"""Models: GPT-2 in the sizes of the ladder and tiny ones. ``model(x, y)`` is a loss."""

from hybrid_ray.models.generate import generate
from hybrid_ray.models.gpt2 import GPT2, build_model, count_parameters
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, flops_per_token, parameter_count

__all__ = [
    "GPT2",
    "PRESETS",
    "GPT2Shape",
    "build_model",
    "count_parameters",
    "flops_per_token",
    "generate",
    "parameter_count",
]
