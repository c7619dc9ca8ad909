"""Divides the trainer's state of a sharded model (FSDP2) anew, for any number of ranks.

FSDP2 shards a tensor along its first dimension, in the chunks of ``torch.chunk``. A checkpoint holds each rank's chunks
as plain tensors, one file per rank, so that it can be read where the ranks and their device mesh no longer exist, and
without unpickling code. `divide` joins the chunks of one tensor at a time and keeps this rank's.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from hybrid_ray.method.weights import shard_number

__all__ = ["divide"]


class _Place(NamedTuple):
    """Where a state holds a tensor with one number per coordinate of a parameter."""

    holder: Any  # a list or a dict
    key: Any
    parameter: Tensor
    of_optimizer: bool

    @property
    def value(self) -> Tensor:
        value: Tensor = self.holder[self.key]
        return value


def divide(states: Sequence[MutableMapping[str, Any]], optimizer: Optimizer, *, on_host: bool) -> dict[str, Any]:
    """This rank's state of the trainer, made from those of all ranks that saved one, which change.

    Args:
        states: `HybridTrainer.state_dict` of each rank in order; or one: of a model that was not sharded, or this
            rank's own, if there are as many ranks as before.
        optimizer: of this rank, whose parameters are `DTensor` where the model is sharded now.
        on_host: whether the optimizer's state is kept in host memory, so that it must not be moved to the device.

    Raises:
        TypeError, RuntimeError: the optimizer's state has tensors that can't be joined (8-bit ones).
    """
    for places in zip(*(_places(state, optimizer) for state in states), strict=True):
        parameter = places[0].parameter
        mine = _joined([place.value for place in places], parameter)
        if isinstance(parameter, DTensor):
            mine = _chunk(mine, parameter)
            if places[0].of_optimizer and not on_host:
                mine = DTensor.from_local(
                    mine.to(parameter.device),
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
        places[0].holder[places[0].key] = mine
    return dict(states[0])


def _places(state: MutableMapping[str, Any], optimizer: Optimizer) -> Iterator[_Place]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, kept in state["parts"]["optimizer"]["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim():
                yield _Place(kept, name, parameters[number], of_optimizer=True)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    cycle = state["parts"].get("cycle")
    for kept in cycle["predictor"]["buffers"].values() if cycle else ():
        for number, parameter in enumerate(trained):
            yield _Place(kept["tensors"], number, parameter, of_optimizer=False)


def _joined(parts: Sequence[Tensor], parameter: Tensor) -> Tensor:
    """The whole tensor if the parts are its chunks; else the first part, which every rank has."""
    rows = sum(part.shape[0] for part in parts)
    return torch.cat(list(parts)) if len(parts) > 1 and rows == parameter.shape[0] else parts[0]


def _chunk(whole: Tensor, parameter: DTensor) -> Tensor:
    """This rank's chunk of a whole tensor; a tensor of another shape is this rank's chunk already."""
    if whole.shape != parameter.shape:
        return whole
    chunks = torch.chunk(whole, parameter.device_mesh.size())
    number = shard_number(parameter)
    return (chunks[number] if number < len(chunks) else whole[:0]).clone()
