"""Training on several workers: DDP and FSDP2 wrapping, reading and writing whole weights. It works with one worker too.

Functions marked collective must be called by every rank, in the same order.
"""

from collections.abc import Mapping

import torch
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
    "reshard",
    "wrap",
]


def wrap(objective: Objective, config: TrainConfig, device: torch.device) -> nn.Module:
    """Prepare model and loss for training on all ranks.

    One worker needs no wrapper. Several use DDP, or FSDP2, which shards the model in place: each child of a
    ``ModuleList`` (a transformer's blocks) by itself, then the rest, so that only one block is gathered at a time.
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
    """Free the gathered weights that a forward pass without a backward pass leaves.

    FSDP2 keeps the root's gathered weights after a forward pass for the backward pass. Without one, the next forward
    pass would use them again although the shards may have changed.
    """
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, gathered if ranks hold shards (collective then). Tied ones once."""
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
        KeyError: ``weights`` has no tensor for a parameter or persistent buffer.
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
