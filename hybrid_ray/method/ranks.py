"""The few words that ranks exchange. All of it works with one rank, without torch.distributed.

A collective is a call that every rank must make, in the same order.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

__all__ = ["any_rank", "from_first_rank", "rank", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Ranks that train this model together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(numbers: torch.Tensor | Sequence[float]) -> list[float]:
    """Sum a small vector over all ranks (collective). Every rank gets the same bits, so every rank decides alike.

    A tensor is summed in its own precision and place, and may be overwritten; other numbers in double precision.
    """
    if world_size() > 1:
        if not isinstance(numbers, torch.Tensor):
            # NCCL moves device memory only; gloo takes either.
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(numbers)
    return [float(number) for number in (numbers.tolist() if isinstance(numbers, torch.Tensor) else numbers)]


def from_first_rank(values: Sequence[float]) -> list[float]:
    """Rank 0's values, on every rank (collective): clocks differ between ranks, decisions must not."""
    return sum_over_ranks([value if rank() == 0 else 0.0 for value in values])


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank: how ranks agree to stop (collective)."""
    return sum_over_ranks([float(flag)])[0] > 0
