"""The sizes of GPT-2, and the FLOPs per token that follow from them."""

from dataclasses import dataclass

__all__ = ["PRESETS", "GPT2Shape", "flops_per_token"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GPT2Shape:
    """The size of a GPT-2 without its vocabulary. ``context`` is the number of learned positions."""

    layers: int
    heads: int
    width: int
    context: int = 1024


PRESETS: dict[str, GPT2Shape] = {
    "micro": GPT2Shape(layers=2, heads=2, width=24, context=32),
    "pico": GPT2Shape(layers=2, heads=2, width=32, context=64),
    "pico64": GPT2Shape(layers=2, heads=4, width=64, context=64),
    "pico128": GPT2Shape(layers=4, heads=4, width=128, context=64),
    "nano": GPT2Shape(layers=3, heads=4, width=64, context=64),
    "mini": GPT2Shape(layers=6, heads=6, width=384, context=256),
    "124M": GPT2Shape(layers=12, heads=12, width=768),
    "350M": GPT2Shape(layers=24, heads=16, width=1024),
    "774M": GPT2Shape(layers=36, heads=20, width=1280),
    "1.5B": GPT2Shape(layers=48, heads=25, width=1600),
}


def flops_per_token(shape: GPT2Shape, vocab_size: int, sequence_length: int) -> int:
    """FLOPs of forward and backward per token: 6 N + 12 L H Q T (PaLM, arXiv 2204.02311, appendix B).

    N counts the weights of matrix products: 12 D^2 per layer and the output table. As model FLOPs utilisation is
    defined, norms, biases, embedding look-ups and the recomputation of activation checkpointing do not count.
    Attention is not halved for the causal mask (PaLM's convention).
    """
    weights = 12 * shape.layers * shape.width**2 + vocab_size * shape.width
    return 6 * weights + 12 * shape.layers * shape.width * sequence_length
