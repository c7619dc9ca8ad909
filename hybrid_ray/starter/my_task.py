"""A model, its data and its loss. Replace all three by your own: every command then works on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from hybrid_ray import Task


class MyTask(Task):
    """A small network learns where a point lies on a curve. ``width`` is set in the job: task.options."""

    unit = "point"  # a loss is a mean over these
    measure = "squared error"  # and is measured in this

    def __init__(self, *, width: int = 32) -> None:
        self.width = width

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))

    def datasets(self) -> dict[str, Dataset[tuple[Tensor, ...]]]:
        """Map-style data sets. ``train`` is trained on, trials are compared on ``val``, claims rest on ``test``."""
        return {part: self._points(seed) for seed, part in enumerate(("train", "val", "test"))}

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean loss of a batch, which is a tuple as the data sets give it, stacked."""
        x, y = batch
        return F.mse_loss(model(x), y)

    def _points(self, seed: int) -> TensorDataset:
        draw = torch.Generator().manual_seed(seed)
        x = 6 * torch.rand(2048, 1, generator=draw) - 3
        return TensorDataset(x, torch.sin(2 * x) + 0.1 * torch.randn(2048, 1, generator=draw))
