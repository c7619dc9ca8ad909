"""The few numbers that ranks exchange. With one rank every function works without torch.distributed.

A function marked "collective" must be called by every rank, in the same order.
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
    """Sum a small vector over all ranks (collective). Every rank gets the same bits, so all make the same decisions.

    A tensor is summed in its own precision on its own device and may be overwritten. Other numbers become doubles.
    """
    if world_size() > 1:
        if not isinstance(numbers, torch.Tensor):
            # NCCL moves device memory only; gloo takes either.
            device = "cuda" if dist.get_backend() == "nccl" else "cpu"
            numbers = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(numbers)
    return [float(number) for number in (numbers.tolist() if isinstance(numbers, torch.Tensor) else numbers)]


def from_first_rank(values: Sequence[float]) -> list[float]:
    """Return rank 0's values on every rank (collective). Clocks differ between ranks, but decisions must not."""
    return sum_over_ranks([value if rank() == 0 else 0.0 for value in values])


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank (collective). Ranks use it to agree to stop."""
    return sum_over_ranks([float(flag)])[0] > 0
