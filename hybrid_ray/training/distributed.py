"""Several workers as one: DDP and FSDP2 wrapping, and weights read and written whole. All of it works with one worker.

A collective here is a call that every rank must make, in the same order.
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from hybrid_ray.config import TrainConfig
from hybrid_ray.method.ranks import world_size
from hybrid_ray.tasks.task import Objective

__all__ = [
    "full_weights",
    "load_weights",
    "process_group",
    "reshard",
    "wrap",
]


def wrap(objective: Objective, config: TrainConfig, device: torch.device) -> nn.Module:
    """Model and loss as ranks train them together: as they are with one worker, else in DDP, or with the model sharded
    in place by FSDP2.

    FSDP2 shards every child of a ``ModuleList`` (a transformer's blocks) by itself, then the rest, so that only one
    block's weights are whole at a time.
    """
    if world_size() == 1:
        return objective
    if config.parallel == "ddp":
        return DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)
    for blocks in [child for child in objective.model.modules() if isinstance(child, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block)
    fully_shard(objective.model)
    return objective


def reshard(module: nn.Module) -> None:
    """Give up whole weights that a forward without a backward has left behind.

    FSDP2 keeps the root's weights whole after a forward, for the backward to come. If none comes, the next forward
    would use them again, though the shards may have moved on by then.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, whole even where ranks hold shards (collective then). Tied ones once."""
    saved = module.state_dict(keep_vars=True)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        for name, tensor in tensors.items()
        if name in saved
    }


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors (`full_weights`) into the module in place; each rank keeps its shard.

    Raises:
        KeyError: a parameter or saved buffer has no tensor of its name.
    """
    saved = module.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, target in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
            if name not in saved:
                continue
            source: Tensor = weights[name]
            if isinstance(target, DTensor):
                source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements)
            target.copy_(source)


@contextlib.contextmanager
def process_group(backend: str, *, init_method: str, rank: int, world_size: int) -> Iterator[None]:
    """A process group for as long as the block lasts (Ray Train makes its own)."""
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
