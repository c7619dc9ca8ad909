"""A model by the name of its preset."""

import difflib

from hybrid_ray.config import ModelConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.models.cnn import CNN
from hybrid_ray.models.gpt2 import GPT2, build_gpt2
from hybrid_ray.models.shapes import PRESETS

__all__ = ["MODELS", "build_model", "check_preset"]

MODELS = (*PRESETS, "cnn")
"""Every preset there is."""


def build_model(config: ModelConfig, *, vocab_size: int, sequence_length: int) -> GPT2 | CNN:
    """A freshly initialised model on the default device, drawn from PyTorch's global generator: seed it before.

    The CNN has the shape of its pictures; vocabulary and sequence length are a GPT-2's.

    Raises:
        ConfigError: no preset of that name.
    """
    check_preset(config)
    if config.preset == "cnn":
        return CNN()
    return build_gpt2(config, vocab_size=vocab_size, sequence_length=sequence_length)


def check_preset(config: ModelConfig) -> None:
    """Raises `ConfigError` where there is no preset of that name."""
    if config.preset not in MODELS:
        close = difflib.get_close_matches(config.preset, MODELS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"model.preset is {config.preset!r} but {hint}there are {', '.join(MODELS)}")
