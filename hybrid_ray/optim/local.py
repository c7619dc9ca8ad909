"""What this rank holds of a tensor, and that cut into pieces of bounded size."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PIECE", "local_part", "pieces"]

PIECE = 1 << 22  # numbers in one piece: 16 MiB in fp32


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: itself, or its shard of a DTensor. Shares memory with it."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor.detach()
    with torch.no_grad():
        local: Tensor = to_local()
    return local


def pieces(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Two tensors of one shape, at most `PIECE` numbers at a time, so that temporaries stay small.

    The parts of ``target`` share its memory. One that is not contiguous comes whole.
    """
    if target.numel() <= PIECE or not target.is_contiguous():
        yield target, source
    else:
        yield from zip(torch.split(target.view(-1), PIECE), torch.split(source.reshape(-1), PIECE), strict=True)
