"""Your own model: an LSTM that learns to continue a series. From hybrid_ray it uses only `Task`.

hybrid-ray plan examples/own_model.yaml
hybrid-ray run examples/own_model.yaml
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from hybrid_ray import Task


class Series(Dataset[tuple[Tensor, Tensor]]):
    """Noisy sums of two sine waves. An item is a series and, as target, the next value at each of its points."""

    def __init__(self, windows: int, length: int, *, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        time = torch.arange(length + 1)
        frequency = 0.05 + 0.25 * torch.rand(windows, 2, 1, generator=draw)
        phase = 2 * math.pi * torch.rand(windows, 2, 1, generator=draw)
        noise = 0.05 * torch.randn(windows, length + 1, generator=draw)
        self.values = torch.sin(frequency * time + phase).sum(dim=1) + noise

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.values[index, :-1], self.values[index, 1:]


class Forecaster(nn.Module):
    """An LSTM that reads a series and forecasts the next value at each point."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, values: Tensor) -> Tensor:
        hidden, _ = self.lstm(values[..., None])
        forecast: Tensor = self.head(hidden)[..., 0]
        return forecast


class SeriesTask(Task):
    """The task. A job sets ``width`` and ``length`` under ``options``."""

    unit = "point"  # the loss is the mean over the points of a batch
    measure = "squared error"

    def __init__(self, *, width: int = 32, length: int = 48) -> None:
        self.width, self.length = width, length

    def build_model(self) -> nn.Module:
        return Forecaster(self.width)

    def datasets(self) -> Mapping[str, Dataset[tuple[Tensor, Tensor]]]:
        sizes = {"train": 4096, "val": 512, "test": 512}
        return {part: Series(size, self.length, seed=seed) for seed, (part, size) in enumerate(sizes.items())}

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        values, following = batch
        return F.mse_loss(model(values).float(), following)

    def metrics(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        values, following = batch
        return {"absolute error": F.l1_loss(model(values), following)}
