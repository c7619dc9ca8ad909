"""A model by the name of its preset."""

from hybrid_ray.config import ModelConfig
from hybrid_ray.models.cnn import CNN
from hybrid_ray.models.gpt2 import GPT2, build_gpt2

__all__ = ["build_model"]


def build_model(config: ModelConfig, *, vocab_size: int, sequence_length: int) -> GPT2 | CNN:
    """A freshly initialised model on the default device, drawn from PyTorch's global generator: seed it before.

    The CNN has the shape of its pictures; vocabulary and sequence length are a GPT-2's.
    """
    if config.preset == "cnn":
        return CNN()
    return build_gpt2(config, vocab_size=vocab_size, sequence_length=sequence_length)
