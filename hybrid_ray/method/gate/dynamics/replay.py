"""The last rows of a series, in a buffer of fixed size."""

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["ReplayBuffer"]


class ReplayBuffer:
    """Keeps the newest ``size`` rows of ``width`` numbers, in fp32. Index 0 is the oldest."""

    def __init__(self, size: int, width: int) -> None:
        self._rows = torch.zeros(size, width)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._rows))

    def add(self, row: torch.Tensor) -> None:
        self._rows[self._added % len(self._rows)] = row
        self._added += 1

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows of these indices, shape (*indices.shape, width)."""
        oldest = self._added - len(self)
        return self._rows[(oldest + indices) % len(self._rows)]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self._rows.clone(), "added": self._added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rows, self._added = state["rows"].clone(), state["added"]
