"""A fixed random sample of coordinates. Measurements use only these, so they need no second copy of the model."""

from collections.abc import Sequence

import torch

from hybrid_ray.method.weights import Weights

__all__ = ["CoordinateSample"]

_SMALL = 1 << 14  # coordinates; ten pairs of them need 0.7 MB
_AT_LEAST = 64  # sampled coordinates per tensor; a smaller tensor is read whole


class CoordinateSample:
    """Reads one in ``one_in`` coordinates of every parameter, always the same ones.

    Each sampled coordinate is weighted by the number of coordinates that it represents, so the inner products estimate
    those of the whole model (up to the number of ranks that hold a copy, which cancels in every ratio).

    Args:
        weights: the parameters.
        one_in: inverse of the sampled share; 64 reads 1.6 % of the coordinates.
        seed: the same seed gives the same coordinates.
    """

    def __init__(self, weights: Weights, *, one_in: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._indices: list[torch.Tensor] = []
        self._sizes = [0] * weights.groups
        factors = []
        for tensor, group, share in zip(weights.local(), weights.group_of, weights.shares, strict=True):
            size = tensor.numel()
            count = min(size, max(_AT_LEAST, size // one_in))
            index = torch.arange(size) if count == size else torch.randint(size, (count,), generator=generator)
            self._indices.append(index.to(tensor.device))
            self._sizes[group] += count
            factors.append(torch.full((count,), share * size / max(1, count)))
        self.device = weights.device
        self._factors = torch.cat(factors).to(self.device)

    def __len__(self) -> int:
        return sum(self._sizes)

    def read(self, tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The sampled coordinates of one tensor per parameter, in fp32, as one vector. None is read as zeros."""
        parts = []
        for tensor, index in zip(tensors, self._indices, strict=True):
            if tensor is None:
                parts.append(torch.zeros(index.numel(), device=self.device))
                continue
            part = torch.take(tensor, index.to(tensor.device))
            parts.append(part if part.dtype is torch.float32 else part.float())
        if any(part.device != self.device for part in parts):
            parts = [part.to(self.device) for part in parts]
        return torch.cat(parts)

    def products(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """<first, second> of each parameter group."""
        return self._by_group(first * second * self._factors)

    def products_of(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """`products` of each pair, one row per pair. Those of a small sample are weighted and summed all at once."""
        if len(self) > _SMALL:
            return torch.stack([self.products(*pair) for pair in pairs])
        rows = torch.empty(len(pairs), len(self), device=self.device)
        for row, (first, second) in zip(rows, pairs, strict=True):
            torch.mul(first, second, out=row)
        return self._by_group(rows.mul_(self._factors))

    def _by_group(self, weighted: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.sum(-1) for part in torch.split(weighted, self._sizes, dim=-1)], dim=-1)
