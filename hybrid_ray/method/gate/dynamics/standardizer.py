"""Brings features to zero mean and unit variance while they arrive."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["RunningScale", "Standardizer"]

_MEMORY = 200  # vectors that an average reaches back
_SETTLED = 20  # values of a feature before outliers are recognised
_LIMIT = 3.0  # standard deviations, of a standardised value and of an outlier


class Standardizer:
    """(value - mean) / standard deviation of each feature, within 3, with averages over about 200 vectors.

    NaN and infinity count as the mean, so they give 0, as does every value of a feature that has never changed. After
    20 values an outlier moves the averages by at most 3 standard deviations.
    """

    def __init__(self, size: int) -> None:
        self.count = torch.zeros(size, dtype=torch.float64)
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.variance = torch.zeros(size, dtype=torch.float64)

    def __call__(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """Standardise one vector, shape (size,), or several, shape (n, size). Returns float64 of the same shape."""
        raw = torch.as_tensor(values, dtype=torch.float64, device="cpu")
        standard = (raw - self.mean) / (self.variance.sqrt() + 1e-6 * self.mean.abs() + 1e-12)
        return torch.where(raw.isfinite() & (self.count > 1), standard, 0.0).clamp(-_LIMIT, _LIMIT)

    def observe(self, values: Sequence[float]) -> None:
        """Update the averages with one vector."""
        raw = torch.tensor(values, dtype=torch.float64, device="cpu")
        known = raw.isfinite()
        self.count = self.count + known
        share = torch.where(known, 1.0 / self.count.clamp(1, _MEMORY), 0.0)
        delta = torch.where(known, raw - self.mean, 0.0)
        limit = torch.where((self.count > _SETTLED) & (self.variance > 0.0), _LIMIT * self.variance.sqrt(), torch.inf)
        delta = torch.minimum(torch.maximum(delta, -limit), limit)
        self.mean = self.mean + share * delta
        self.variance = (1.0 - share) * (self.variance + share * delta.square())

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)  # tensors are replaced, never written in place


class RunningScale:
    """Root mean square of a series, over about 200 values. After 20 values an outlier counts as at most 3 times it.

    Args:
        prior: its value before the first one,
        count: and as how many values that counts.
    """

    def __init__(self, prior: float = 1.0, *, count: int = 0) -> None:
        self.count = count
        self.square = prior**2

    @property
    def value(self) -> float:
        return self.square**0.5 or 1.0

    def observe(self, value: float) -> None:
        self.count = min(self.count + 1, _MEMORY)
        most = _LIMIT**2 * self.square if self.count > _SETTLED and self.square else math.inf
        self.square += (min(value**2, most) - self.square) / self.count

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
