"""What a task is: everything a run needs to know of a model and its data. Subclass `Task` for your own.

    class Squares(Task):
        unit, measure = "point", "squared error"

        def __init__(self, *, width: int = 32) -> None:        # task.options of the job
            self.width = width

        def build_model(self): return nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))
        def datasets(self): return {"train": ..., "val": ..., "test": ...}
        def loss(self, model, batch): x, y = batch; return F.mse_loss(model(x), y)

    task: {factory: my_module:Squares, options: {width: 64}}   # in the job

A run builds the task in each of its processes, so what a task makes must depend on its options alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, default_collate

from hybrid_ray.config import RunConfig, Split, TrainConfig
from hybrid_ray.tasks.sampling import DatasetSampler, Sampler, dataset_fingerprint, heldout_stretches, own_draws

__all__ = ["AUTOCAST", "Batch", "MatmulProbe", "Objective", "Part", "Task", "batch_to"]

AUTOCAST: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What forwards and backwards compute in, by ``train.precision``; None: no autocast."""

Part = Literal["train", "decide", "val", "test"]
"""A part of the data: what is trained on, and the held-out splits."""
Batch = Any
"""Tensors in tuples, lists, dictionaries, nested as you like: whatever `Task.loss` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulProbe:
    """How to estimate a step's time without taking one: floating-point operations, and the width of the products."""

    width: int
    rows: int  # of the product, for one example
    flops: int  # forward and backward of one example


class Task:
    """A model, its data and its loss. Only `build_model`, `datasets` and `loss` must be written.

    ``unit`` is what a loss is per and ``measure`` what it counts: reports print "loss 2.31, nats a token".
    """

    unit: str = "example"
    measure: str = "loss"
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings of the job that the task reads beside its options: ``model``, ``data`` or single ones, by full name."""

    # What a task must say.

    def build_model(self) -> nn.Module:
        """A freshly initialised model on the CPU. Draw from PyTorch's global generator: it is seeded before."""
        raise NotImplementedError

    def datasets(self) -> Mapping[str, Dataset[Any]]:
        """``train``, ``val`` and ``test``: map-style (``__len__``, ``__getitem__``), never empty; ``decide`` too if
        there is one.

        Called once a process, with PyTorch's, NumPy's and Python's global generators at a fixed seed. Items may draw
        from these too (augmentation): item n of a run's stream draws the same whenever it is read.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar. Call ``model(...)`` itself, not its parts, if it is to be sharded."""
        raise NotImplementedError

    # What has a default.

    def optimizer(self, model: nn.Module, settings: TrainConfig) -> Optimizer | None:
        """The optimizer of a run. None: the one that the job names in ``train.optimizer``."""
        return None

    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, float | Tensor]:
        """Means over a held-out batch, under the same names for each batch. Reports show ``accuracy``."""
        return {}

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Items of a data set as one batch."""
        return default_collate(list(samples))

    def count(self, batch: Batch) -> int:
        """How many ``unit`` a batch has, which is what `loss` is a mean over: numbers in its last tensor, usually the
        targets.
        """
        return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)][-1].numel()

    heldout_batch: int = 256
    """Most examples in a batch of an evaluation."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data: runs are compared only where it is equal, and kept runs are used again.

        By default of the lengths of the data sets and of some 16 items of each, the first and the last among them.
        Override it where data may change in other places.
        """
        return self._fingerprint

    # How the loop reads it. Our own tasks have faster ways; yours need not.

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Sampler:
        """Training batches without end, from their start: ``batch_size`` examples over all ranks, a share for each."""
        return DatasetSampler(
            self.parts["train"], self.collate, batch_size=batch_size, seed=seed, rank=rank, world=world
        )

    def stretches(self, split: Split) -> Iterator[Batch]:
        """One pass over a split in at least some 32 batches of neighbouring examples; the last may be smaller."""
        return heldout_stretches(self.parts[split], self.collate, most=self.heldout_batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Loss and metrics of a held-out batch."""
        return self.loss(model, batch), self.metrics(model, batch)

    def written_sample(self, model: nn.Module, *, tokens: int) -> str | None:
        """What the trained model writes, for the report; None where it writes nothing."""
        return None

    @classmethod
    def arguments(cls, run: RunConfig) -> dict[str, Any]:
        """What the task is made with beside its options: the settings that it ``reads``."""
        return {}

    # What a memory or cost estimate can use, if it is there.

    @property
    def classes(self) -> int | None:
        """Values that a target can take, of a classifier: tells logits from other activations."""
        return None

    @property
    def depth(self) -> int | None:
        """How many equal blocks the model has: then its memory is found from shallow ones (`build_shallow`)."""
        return None

    def build_shallow(self, blocks: int) -> nn.Module:
        """The model with so many of its equal blocks."""
        raise NotImplementedError

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The equal blocks of a model, in the order of a forward."""
        return ()

    def matmul_probe(self) -> MatmulProbe | None:
        """None: a step's time is found by taking a gradient."""
        return None

    # Made once.

    @cached_property
    def parts(self) -> Mapping[Part, Dataset[Any]]:
        """`datasets`, made on the first call. Raises `ConfigError` where they are not what a run can read."""
        from hybrid_ray.tasks.load import checked_datasets

        with own_draws(seed=0):
            return checked_datasets(self)

    @cached_property
    def _fingerprint(self) -> str:
        return dataset_fingerprint(self.parts)


class Objective(nn.Module):
    """Model and loss as one module, which DDP, ``torch.compile`` and the loop call with a batch."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is. From pinned memory the copy does not hold up the queue of a GPU's kernels."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else leaf.to(device)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return batch if device.type == "cpu" else tree_map(moved, batch)
