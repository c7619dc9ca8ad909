"""The part of a tensor that this rank holds, and splitting it into pieces of bounded size."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["PIECE", "local_part", "pieces"]

PIECE = 1 << 22  # elements of one piece: 16 MiB in fp32


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: all of a plain tensor, its shard of a DTensor. Shares memory."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor.detach()
    with torch.no_grad():
        local: Tensor = to_local()
    return local


def pieces(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over two tensors of equal shape in pieces of at most `PIECE` elements, so that temporaries stay small.

    The pieces of ``target`` share its memory. If it is not contiguous, both tensors are one piece.
    """
    if target.numel() <= PIECE or not target.is_contiguous():
        yield target, source
    else:
        yield from zip(torch.split(target.view(-1), PIECE), torch.split(source.reshape(-1), PIECE), strict=True)
