"""The slow gradient average of AdEMAMix (arXiv 2409.03137): the schedule of its decay, and steps along it.

Shared by the optimizer (``optim/ademamix.py``), which steps along the average in every real step, and the predictor
(``predictors/slow_momentum.py``), which takes several of these steps at once.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hybrid_ray.optim.local import PIECE, local_part, pieces

__all__ = ["FIRST_DECAY", "add_slow_step_", "slow_decay"]

FIRST_DECAY = 0.9
"""Decay of the slow average at the start of a run: that of the fast average, as in the paper."""


def slow_decay(progress: float, beta3: float, *, first: float = FIRST_DECAY) -> float:
    """Decay of the slow average at ``progress`` (0 to 1) of the run, from ``first`` to ``beta3``.

    Its *half-life* is interpolated linearly (f_beta3 in the paper, equation 4). Interpolating the decay itself would
    keep the average short for nearly all of the run.
    """
    if beta3 <= first:
        return beta3
    half_life = (1.0 - progress) * _half_life(first) + progress * _half_life(beta3)
    return math.exp(math.log(0.5) / half_life)


def _half_life(decay: float) -> float:
    """Number of steps after which the weight of a gradient has halved."""
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
    """w -= size x q / (sqrt(v / (1 - beta2^t)) + eps), in place, on this rank's part of each tensor.

    Needs two temporary tensors of at most `optim.local.PIECE` elements, and no synchronisation with the device.

    Args:
        weights: w.
        averages: q, one per weight; not bias-corrected, as in the paper.
        squares: v, Adam's second moments.
        steps: t, Adam's update counts, one per weight.
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
    """Ranges of consecutive tensors with at most `PIECE` elements in total; a larger tensor is a range by itself."""
    start, size = 0, 0
    for place, tensor in enumerate(tensors):
        if place > start and size + tensor.numel() > PIECE:
            yield start, place
            start, size = place, 0
        size += tensor.numel()
    if tensors:
        yield start, len(tensors)
