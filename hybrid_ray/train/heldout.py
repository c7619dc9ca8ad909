"""Held-out losses: the whole split, no gradients, in stretches of text large enough to be quick."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import nn

from hybrid_ray.config import Split
from hybrid_ray.data import Corpus, heldout_batches
from hybrid_ray.records import Heldout
from hybrid_ray.train.parallel import rank, reshard, sum_over_ranks, world_size

__all__ = ["heldout_loss"]

STRETCHES = 32
LARGEST_BATCH = 16_384  # tokens; beyond it a batch costs memory and gains nothing


def heldout_loss(
    module: nn.Module,
    corpus: Corpus,
    split: Split,
    *,
    sequence_length: int,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
    share: bool,
) -> Heldout:
    """Mean loss on a split and its standard error (collective).

    The split is cut into about 32 stretches of neighbouring text, one batch each. The standard error is that of the
    mean of the stretches' losses: sequences next to each other come from one file and are alike, so an error taken over
    single sequences would be too small. It says how well the split stands for all text of its kind; two runs on the
    same split differ by less, since they share the text.

    Args:
        share: each rank takes every world-size-th batch. False where a forward needs every rank (FSDP).
        precision: makes the autocast context of a forward.
    """
    tokens_in_split = len(corpus.heldout[split])
    rows = tokens_in_split // sequence_length
    batch = max(1, min(rows // STRETCHES, LARGEST_BATCH // sequence_length))
    losses: list[float | torch.Tensor] = []
    weights: list[int] = []
    was_training = module.training
    module.eval()
    with torch.no_grad(), precision():
        for index, (x_BT, y_BT) in enumerate(
            heldout_batches(corpus, split, batch_size=batch, sequence_length=sequence_length)
        ):
            mine = not share or index % world_size() == rank()
            losses.append(module(x_BT.to(device), y_BT.to(device)).double() if mine else 0.0)
            weights.append(y_BT.numel())
    module.train(was_training)
    reshard(module)
    # One transfer for all batches: a .item() each would wait for the device each time.
    values = torch.stack([torch.as_tensor(loss, dtype=torch.float64, device=device) for loss in losses]).tolist()
    if share:
        values = sum_over_ranks(values)
    return _summary(values, weights)


def _summary(losses: list[float], weights: list[int]) -> Heldout:
    """Weighted mean, and its standard error with the stretches taken as independent (Cochran 1977, section 6.3)."""
    total = sum(weights)
    mean = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / total
    count = len(losses)
    squares = sum((weight * (loss - mean)) ** 2 for loss, weight in zip(losses, weights, strict=True))
    error = math.sqrt(squares * count / (count - 1)) / total if count > 1 else math.inf
    return Heldout(loss=mean, standard_error=error, tokens=total)
