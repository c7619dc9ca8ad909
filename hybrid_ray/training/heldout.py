"""Evaluates the loss and the task's metrics on a whole held-out split, in large batches and without gradients."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from hybrid_ray.config import Split
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.ranks import rank, sum_over_ranks, world_size
from hybrid_ray.run_result import Heldout
from hybrid_ray.tasks.task import Task, batch_to
from hybrid_ray.training.distributed import reshard

__all__ = ["heldout_loss"]


def heldout_loss(
    module: nn.Module,
    task: Task,
    split: Split,
    *,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[object]],
    share: bool,
) -> Heldout:
    """The mean loss on a split, its standard error, and the means of the task's metrics (collective).

    The split is divided into about 32 stretches of consecutive examples, one batch each, and the standard error is
    computed over the stretches. Neighbouring sequences come from one file and are correlated, so a standard error over
    single sequences would be too small. It measures how well the split represents all data of its kind; the difference
    of two runs on the same split is known more precisely, since they share the data.

    Args:
        share: each rank evaluates every world-size-th batch. Must be False if a forward pass needs every rank (FSDP).
        precision: makes the autocast context of a forward pass.

    Raises:
        ConfigError: the names of the task's metrics differ between batches.
    """
    losses: list[Tensor] = []
    metrics: dict[str, list[Tensor]] = {}
    weights: list[int] = []
    nothing = torch.zeros((), device=device)
    was_training = module.training
    module.eval()
    with torch.no_grad(), precision():
        for index, batch in enumerate(task.stretches(split)):
            mine = not share or index % world_size() == rank()
            loss, found = nothing, dict.fromkeys(metrics, nothing)
            if mine or index == 0:  # every rank evaluates the first batch, to learn the metrics' names
                loss, own = task.evaluate(module, batch_to(batch, device))
                found = {name: torch.as_tensor(value, device=device) for name, value in own.items()}
            if index and found.keys() != metrics.keys():
                raise ConfigError(
                    f"{type(task).__name__}.metrics returned {sorted(metrics)} for one batch and {sorted(found)} for "
                    "another: return the same names for every batch"
                )
            for name, value in found.items():
                metrics.setdefault(name, []).append(value if mine else nothing)
            losses.append(loss if mine else nothing)
            weights.append(task.count(batch))
    module.train(was_training)
    reshard(module)
    # One transfer for all batches: .item() on each would synchronise with the device each time.
    columns = [losses, *metrics.values()]
    values = torch.stack([value.double() for column in columns for value in column]).tolist()
    if share:
        values = sum_over_ranks(values)
    count = len(losses)
    means = {name: _mean(values[count * at : count * (at + 1)], weights) for at, name in enumerate(metrics, start=1)}
    return _summary(values[:count], means, weights)


def _summary(losses: Sequence[float], metrics: Mapping[str, float], weights: Sequence[int]) -> Heldout:
    """Weighted means, and the standard error of the loss over independent stretches (Cochran 1977, section 6.3)."""
    total = sum(weights)
    mean, count = _mean(losses, weights), len(losses)
    squares = sum((weight * (loss - mean)) ** 2 for loss, weight in zip(losses, weights, strict=True))
    error = math.sqrt(squares * count / (count - 1)) / total if count > 1 else math.inf
    others = {name: value for name, value in metrics.items() if name != "accuracy"}
    return Heldout(loss=mean, standard_error=error, tokens=total, accuracy=metrics.get("accuracy"), metrics=others)


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
