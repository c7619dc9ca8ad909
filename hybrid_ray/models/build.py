"""Builds a model by the name of its preset."""

from hybrid_ray.config import ModelConfig
from hybrid_ray.models.cnn import CNN
from hybrid_ray.models.gpt2 import GPT2, build_gpt2

__all__ = ["build_model"]


def build_model(config: ModelConfig, *, vocab_size: int, sequence_length: int) -> GPT2 | CNN:
    """A freshly initialised model on the default device. It draws from PyTorch's global generator: seed that before.

    Args:
        config: its ``preset`` selects the model.
        vocab_size: tokens in the vocabulary of a GPT-2; the CNN ignores it.
        sequence_length: longest sequence of a GPT-2, in tokens; the CNN ignores it.
    """
    if config.preset == "cnn":
        return CNN()
    return build_gpt2(config, vocab_size=vocab_size, sequence_length=sequence_length)
