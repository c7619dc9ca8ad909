"""Models: GPT-2 in its published and in tiny sizes, and a small CNN. Calling ``model(x, y)`` returns the loss."""

from hybrid_ray.models.build import build_model
from hybrid_ray.models.cnn import CNN
from hybrid_ray.models.generate import generate
from hybrid_ray.models.gpt2 import GPT2, count_parameters
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, flops_per_token

__all__ = [
    "CNN",
    "GPT2",
    "PRESETS",
    "GPT2Shape",
    "build_model",
    "count_parameters",
    "flops_per_token",
    "generate",
]
