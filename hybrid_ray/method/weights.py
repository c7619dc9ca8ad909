"""The trainable parameters of an optimizer, as this rank holds them."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from hybrid_ray.errors import ConfigError
from hybrid_ray.method.ranks import world_size
from hybrid_ray.optim.local import local_part

__all__ = ["Weights", "local_part", "shard_number"]


class Weights:
    """The parameters that ``optimizer`` trains, group by group, without frozen ones (no ``requires_grad``).

    Tied parameters are one tensor and appear once. A DTensor (FSDP2) is represented by this rank's shard.

    Args:
        model: tells embedding tables from other matrices.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> None:
        self._optimizer = optimizer
        self.signature = self._sign()
        self.parameters: list[torch.Tensor] = []
        self.group_of: list[int] = []  # the parameter group of each parameter
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self.parameters.append(parameter)
                    self.group_of.append(number)
        modules = () if model is None else model.modules()
        tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
        self.hidden_matrices = [
            number for number, one in enumerate(self.parameters) if one.ndim == 2 and id(one) not in tables
        ]
        """Numbers of the matrices that are no embedding table (or tied to one)."""
        if not self.parameters:
            raise ConfigError("the optimizer has no parameter that requires a gradient: unfreeze one")
        strange = {str(p.dtype) for p in self.parameters if not p.is_floating_point()}
        if strange:
            raise ConfigError(f"parameters of type {', '.join(sorted(strange))} can't be predicted: only real ones can")

    @property
    def groups(self) -> int:
        return len(self._optimizer.param_groups)

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    @property
    def changed(self) -> bool:
        """Whether parameters were added, removed, frozen, unfrozen or resized since this object was made."""
        return self._sign() != self.signature

    @cached_property
    def shares(self) -> list[float]:
        """For each parameter, 1 / (number of ranks that hold the same values).

        Squares weighted by these shares and summed over ranks give the square of the whole model, sharded or not.
        """
        return [1.0 / (world_size() // _shards(parameter)) for parameter in self.parameters]

    def local(self) -> list[torch.Tensor]:
        """This rank's part of each parameter, as a tensor that shares its memory."""
        return [local_part(parameter) for parameter in self.parameters]

    def gradients(self) -> list[torch.Tensor | None]:
        """This rank's part of each parameter's gradient; None where the loss does not depend on the parameter."""
        return [None if parameter.grad is None else local_part(parameter.grad) for parameter in self.parameters]

    def by_group(self, numbers: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Sum one number per parameter to one number per group, weighted by the shares."""
        sums = [torch.zeros((), dtype=torch.float32, device=self.device) for _ in range(self.groups)]
        for group, share, number in zip(self.group_of, self.shares, numbers, strict=True):
            sums[group].add_(number.to(self.device) if share == 1.0 else share * number.to(self.device))
        return sums

    def _sign(self) -> tuple[tuple[int, bool, int], ...]:
        return tuple(
            (id(parameter), parameter.requires_grad, parameter.numel())
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        )


def shard_number(parameter: torch.Tensor) -> int:
    """The index of the shard of a parameter that this rank holds; 0 if the parameter is not sharded."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return 0
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    number = 0
    for dimension, placement in enumerate(placements):
        if placement.is_shard():
            number = number * mesh.size(dimension) + mesh.get_local_rank(dimension)
    return int(number)


def _shards(parameter: torch.Tensor) -> int:
    """The number of different shards that a parameter is split into over the ranks."""
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return 1
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    pieces = 1
    for dimension, placement in enumerate(placements):
        pieces *= mesh.size(dimension) if placement.is_shard() else 1
    return int(pieces)
