"""A fixed random sample of coordinates. Measurements use only these, so they need no second copy of the model."""

from collections.abc import Sequence

import torch

from hybrid_ray.method.weights import Weights

__all__ = ["CoordinateSample"]

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
            else:
                picked = tensor.reshape(-1)[index.to(tensor.device)]
                parts.append(picked.to(self.device, torch.float32))
        return torch.cat(parts)

    def products(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """<first, second> of each parameter group."""
        weighted = first * second * self._factors
        return torch.stack([part.sum() for part in torch.split(weighted, self._sizes)])
