"""Task: a small CNN on pictures of digits, at MNIST scale (``model.preset: cnn``, ``data.corpus: digits``)."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import Dataset

from hybrid_ray.config import DataConfig, RunConfig, Split
from hybrid_ray.data.digits import Digits, prepare_digits
from hybrid_ray.models import CNN
from hybrid_ray.tasks.sampling import Sampler
from hybrid_ray.tasks.task import Task

__all__ = ["DigitsTask", "Pictures"]

Pair = tuple[Tensor, Tensor]


class Pictures(Dataset[Pair]):
    """One part of the data as a data set. An item is an image (1HW, fp32) and its label."""

    def __init__(self, digits: Digits, part: str) -> None:
        self._digits, self._part = digits, part

    def __len__(self) -> int:
        return len(self._digits.labels[self._part])

    def __getitem__(self, item: int) -> Pair:
        images_B1HW, labels_B = self._digits.some(self._part, [item])
        return images_B1HW[0], labels_B[0]


class DigitsTask(Task):
    """A batch is ``(images_B1HW, labels_B)``."""

    unit = "picture"
    measure = "nats"
    reads = frozenset({"model.preset", "data.corpus"})

    def __init__(self, *, data: DataConfig) -> None:
        self.data = data

    @classmethod
    def arguments(cls, run: RunConfig) -> dict[str, Any]:
        return {"data": run.data}

    @cached_property
    def digits(self) -> Digits:
        return prepare_digits(self.data.cache_dir)

    @property
    def fingerprint(self) -> str:
        return self.digits.fingerprint

    @property
    def classes(self) -> int:
        return self.digits.classes

    def build_model(self) -> nn.Module:
        return CNN()

    def datasets(self) -> Mapping[str, Dataset[Any]]:
        """The same pictures that `sampler` and `stretches` read in batches."""
        return {part: Pictures(self.digits, part) for part in self.digits.labels}

    def loss(self, model: nn.Module, batch: Pair) -> Tensor:
        return cast(Tensor, model(*batch))

    def evaluate(self, model: nn.Module, batch: Pair) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss and accuracy from one forward pass."""
        loss, accuracy = cast(CNN, model).loss_and_accuracy(*batch)
        return loss, {"accuracy": accuracy}

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Sampler:
        return self.digits.sampler(batch_size=batch_size, seed=seed, rank=rank, world=world)

    def stretches(self, split: Split) -> Iterator[Pair]:
        return self.digits.stretches(split)
