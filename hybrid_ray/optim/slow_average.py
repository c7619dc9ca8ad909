"""The slow average of gradients of AdEMAMix (arXiv 2409.03137): how its memory grows over a run, and steps along it.

The optimizer (``optim/ademamix.py``) and the predictor (``predictors/slow_momentum.py``) share it: one takes a step
along the average at every real step, the other takes several at once.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hybrid_ray.optim.local import PIECE, local_part, pieces

__all__ = ["FIRST_DECAY", "add_slow_step_", "slow_decay"]

FIRST_DECAY = 0.9
"""Decay of the slow average at the start of a run: that of the fast one, as in the paper."""


def slow_decay(progress: float, beta3: float, *, first: float = FIRST_DECAY) -> float:
    """Decay of the slow average when ``progress`` (0 to 1) of the run is done: from ``first`` to ``beta3``.

    Its *half-life* grows linearly (the paper's f_beta3, equation 4), so the average is never longer than the run so
    far deserves. Interpolating the decay itself would leave it short for nearly all of the run.
    """
    if beta3 <= first:
        return beta3
    half_life = (1.0 - progress) * _half_life(first) + progress * _half_life(beta3)
    return math.exp(math.log(0.5) / half_life)


def _half_life(decay: float) -> float:
    """Steps after which a gradient's weight has halved."""
    return math.log(0.5) / math.log(decay)


def add_slow_step_(
    weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    beta2: float,
    eps: float,
    size: float,
) -> None:
    """w -= size x q / (sqrt(v / (1 - beta2^t)) + eps), in place, on what this rank holds.

    Temporaries are two tensors of at most `optim.local.PIECE` numbers. No wait for the device.

    Args:
        averages: q, one a weight; not bias-corrected (it starts at 0, and the paper wants it so).
        squares: v, Adam's second moment.
        steps: t, Adam's own count of updates, one a weight.
    """
    locals_ = [[local_part(tensor) for tensor in tensors] for tensors in (weights, averages, squares)]
    for start, stop in _runs(locals_[0]):
        target, average, square = (tensors[start:stop] for tensors in locals_)
        correction = [1.0 - beta2**step for step in steps[start:stop]]
        if stop - start == 1:
            for (mine, q), (_, v) in zip(pieces(target[0], average[0]), pieces(target[0], square[0]), strict=True):
                mine.addcdiv_(q, (v / correction[0]).sqrt_().add_(eps), value=-size)
            continue
        roots = torch._foreach_div(square, correction)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(target, average, roots, value=-size)


def _runs(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Neighbours that together have at most `PIECE` numbers; a larger tensor is alone."""
    start, size = 0, 0
    for place, tensor in enumerate(tensors):
        if place > start and size + tensor.numel() > PIECE:
            yield start, place
            start, size = place, 0
        size += tensor.numel()
    if tensors:
        yield start, len(tensors)
