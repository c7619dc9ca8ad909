"""Held-out losses, and a classifier's accuracy: the whole split, no gradients, in batches large enough to be quick."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hybrid_ray.config import Split
from hybrid_ray.data import Dataset
from hybrid_ray.method.ranks import rank, sum_over_ranks, world_size
from hybrid_ray.run_result import Heldout
from hybrid_ray.training.distributed import reshard

__all__ = ["heldout_loss"]


@runtime_checkable
class Classifier(Protocol):
    """A model that is judged by how often it is right."""

    def loss_and_accuracy(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, and the share of the targets that it gets right: two scalars."""
        ...


def heldout_loss(
    module: nn.Module,
    data: Dataset,
    split: Split,
    *,
    sequence_length: int,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
    share: bool,
) -> Heldout:
    """Mean loss on a split and its standard error, and a `Classifier`'s accuracy (collective).

    The split is cut into about 32 stretches of neighbouring text, one batch each. The standard error is that of the
    mean of the stretches' losses: sequences next to each other come from one file and are alike, so an error taken over
    single sequences would be too small. It says how well the split stands for all text of its kind; two runs on the
    same split differ by less, since they share the text.

    Args:
        share: each rank takes every world-size-th batch. False where a forward needs every rank (FSDP).
        precision: makes the autocast context of a forward.
    """
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []
    weights: list[int] = []
    nothing = torch.zeros((), device=device)
    was_training = module.training
    module.eval()
    with torch.no_grad(), precision():
        for index, (x, y) in enumerate(data.stretches(split, sequence_length=sequence_length)):
            mine = not share or index % world_size() == rank()
            here = (x.to(device), y.to(device)) if mine else None
            if isinstance(module, Classifier):
                loss, accuracy = module.loss_and_accuracy(*here) if here else (nothing, nothing)
                accuracies.append(accuracy)
            else:
                loss = module(*here) if here else nothing
            losses.append(loss)
            weights.append(y.numel())
    module.train(was_training)
    reshard(module)
    # One transfer for all batches: a .item() each would wait for the device each time.
    values = torch.stack([value.double() for value in (*losses, *accuracies)]).tolist()
    if share:
        values = sum_over_ranks(values)
    return _summary(values[: len(losses)], values[len(losses) :], weights)


def _summary(losses: Sequence[float], accuracies: Sequence[float], weights: Sequence[int]) -> Heldout:
    """Weighted means, and the loss's standard error with the stretches taken as independent (Cochran 1977, 6.3)."""
    total = sum(weights)
    mean, count = _mean(losses, weights), len(losses)
    squares = sum((weight * (loss - mean)) ** 2 for loss, weight in zip(losses, weights, strict=True))
    error = math.sqrt(squares * count / (count - 1)) / total if count > 1 else math.inf
    accuracy = _mean(accuracies, weights) if accuracies else None
    return Heldout(loss=mean, standard_error=error, tokens=total, accuracy=accuracy)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
