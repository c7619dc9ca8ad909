"""Reads and writes GPT-2 weights in the file format of Hugging Face's ``transformers``, without that package.

Parameter names are the same except for the prefix ``transformer.``; their Conv1D stores a linear layer's weight
transposed.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybrid_ray.errors import CheckpointError
from hybrid_ray.models.gpt2 import GPT2

__all__ = ["from_huggingface", "load_huggingface", "save_huggingface", "to_huggingface"]

PREFIX = "transformer."
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks in old files


def to_huggingface(model: GPT2) -> dict[str, Tensor]:
    """The state dict of a ``GPT2LMHeadModel`` with tied embeddings, without padding rows."""
    return {PREFIX + name: _their_view(model, name, tensor) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def from_huggingface(model: GPT2, state: Mapping[str, Tensor]) -> None:
    """Copy such a state dict (with or without the prefix) into ``model``. Padding rows of its token table are kept.

    Raises:
        CheckpointError: a parameter is missing, unknown, or has another shape; nothing is copied then.
    """
    named = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    given = {name: tensor for name, tensor in named.items() if name != "lm_head.weight" and not name.endswith(BUFFERS)}
    mine = {name: _their_view(model, name, tensor) for name, tensor in model.named_parameters()}
    wrong = [f"{name} is missing" for name in mine.keys() - given.keys()]
    wrong += [f"{name} is not a parameter of this model" for name in given.keys() - mine.keys()]
    wrong += [
        f"{name} has shape {tuple(given[name].shape)} but this model's has {tuple(mine[name].shape)}"
        for name in mine.keys() & given.keys()
        if given[name].shape != mine[name].shape
    ]
    if wrong:
        raise CheckpointError(f"the weights do not fit this GPT-2: {'; '.join(sorted(wrong))}")
    for name, view in mine.items():
        view.copy_(given[name])


def _their_view(model: GPT2, name: str, parameter: Tensor) -> Tensor:
    if name == "wte.weight":
        return parameter[: model.vocab_size]
    return parameter.t() if name.endswith(TRANSPOSED) else parameter


def save_huggingface(model: GPT2, path: Path) -> None:
    """Write a safetensors file that ``transformers`` loads as the weights of a ``GPT2LMHeadModel``."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in to_huggingface(model).items()}
    save_file(state, path, metadata={"format": "pt"})


def load_huggingface(model: GPT2, path: Path) -> None:
    """Load such a file into ``model``.

    Raises:
        CheckpointError: a parameter is missing, unknown, or has another shape.
    """
    from_huggingface(model, load_file(path))
