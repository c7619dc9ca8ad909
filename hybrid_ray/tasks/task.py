"""The interface of a task: a model, its data and its loss. Subclass `Task` to write your own.

    class Squares(Task):
        unit, measure = "point", "squared error"

        def __init__(self, *, width: int = 32) -> None:        # task.options of the job
            self.width = width

        def build_model(self): return nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))
        def datasets(self): return {"train": ..., "val": ..., "test": ...}
        def loss(self, model, batch): x, y = batch; return F.mse_loss(model(x), y)

    task: {factory: my_module:Squares, options: {width: 64}}   # in the job

Each process of a run builds the task itself, so what a task creates must depend only on its options.
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
"""Autocast dtype of forward and backward passes, by ``train.precision``; None: no autocast."""

Part = Literal["train", "decide", "val", "test"]
"""A part of the data: the training set or one of the held-out splits."""
Batch = Any
"""The input of `Task.loss`: tensors in tuples, lists and dictionaries, nested in any way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MatmulProbe:
    """Data to estimate a step's time without running it: FLOPs, and the shape of the matrix products."""

    width: int
    rows: int  # rows of the product for one example
    flops: int  # of the forward and backward pass of one example


class Task:
    """A model, its data and its loss. A subclass must define only `build_model`, `datasets` and `loss`.

    ``measure`` is the unit of the loss and ``unit`` is what the loss is averaged over: reports print "loss 2.31, nats a
    token".
    """

    unit: str = "example"
    measure: str = "loss"
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings that the task reads besides its options: ``model``, ``data``, or full names of single settings."""

    # A task must define these methods.

    def build_model(self) -> nn.Module:
        """A newly initialised model on the CPU. Use PyTorch's global generator, which is seeded before the call."""
        raise NotImplementedError

    def datasets(self) -> Mapping[str, Dataset[Any]]:
        """The data sets ``train``, ``val`` and ``test``, and optionally ``decide``.

        Each must be map-style (``__len__``, ``__getitem__``) and not empty. The method is called once per process, with
        a fixed seed in the global random generators of PyTorch, NumPy and Python. Items may also use these generators
        (augmentation): item n of a run's stream gets the same random numbers each time that it is read.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch, a scalar. For sharding, call ``model(...)`` itself, not its submodules."""
        raise NotImplementedError

    # These methods have a default.

    def optimizer(self, model: nn.Module, settings: TrainConfig) -> Optimizer | None:
        """The optimizer of a run. None: use the optimizer that the job names in ``train.optimizer``."""
        return None

    def metrics(self, model: nn.Module, batch: Batch) -> Mapping[str, float | Tensor]:
        """Metrics by name, means over a held-out batch; every batch has the same names. Reports show ``accuracy``."""
        return {}

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Combine items of a data set into one batch."""
        return default_collate(list(samples))

    def count(self, batch: Batch) -> int:
        """The number of units (``unit``) in a batch, over which `loss` is the mean.

        By default it is the number of elements of the batch's last tensor, usually the targets.
        """
        return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)][-1].numel()

    heldout_batch: int = 256
    """Maximum number of examples in an evaluation batch."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data. Runs are compared, and cached runs are reused, only if their hashes are equal.

        By default the hash covers the length of each data set and at most 16 of its items, which include the first and
        the last. Override it if other items of the data may change.
        """
        return self._fingerprint

    # The training loop calls these methods. Built-in tasks override them for speed; other tasks need not.

    def sampler(self, *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Sampler:
        """An endless stream of training batches; ``batch_size`` examples per batch are divided among all ranks."""
        return DatasetSampler(
            self.parts["train"], self.collate, batch_size=batch_size, seed=seed, rank=rank, world=world
        )

    def stretches(self, split: Split) -> Iterator[Batch]:
        """One pass over a split in at least about 32 batches of consecutive examples; the last batch may be smaller."""
        return heldout_stretches(self.parts[split], self.collate, most=self.heldout_batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Loss and metrics on a held-out batch."""
        return self.loss(model, batch), self.metrics(model, batch)

    def written_sample(self, model: nn.Module, *, tokens: int) -> str | None:
        """A text sample from the trained model, for the report; None if the model does not generate text."""
        return None

    @classmethod
    def arguments(cls, run: RunConfig) -> dict[str, Any]:
        """Keyword arguments of the task in addition to its options, taken from the settings that it ``reads``."""
        return {}

    # Memory and cost estimates use these if a task defines them.

    @property
    def classes(self) -> int | None:
        """Number of classes of a classifier, used to tell logits from other activations; None: not a classifier."""
        return None

    @property
    def depth(self) -> int | None:
        """Number of equal blocks in the model; None: unknown. If known, memory is estimated from shallow models
        (`build_shallow`).
        """
        return None

    def build_shallow(self, blocks: int) -> nn.Module:
        """The model with only this number of its equal blocks."""
        raise NotImplementedError

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The equal blocks of a model, in the order of the forward pass."""
        return ()

    def matmul_probe(self) -> MatmulProbe | None:
        """Data to estimate a step's time. None: the time is measured by computing a gradient."""
        return None

    # These are computed once.

    @cached_property
    def parts(self) -> Mapping[Part, Dataset[Any]]:
        """The result of `datasets`, created on first use. Raises `ConfigError` if a run cannot read the data sets."""
        from hybrid_ray.tasks.load import checked_datasets

        with own_draws(seed=0):
            return checked_datasets(self)

    @cached_property
    def _fingerprint(self) -> str:
        return dataset_fingerprint(self.parts)


class Objective(nn.Module):
    """Model and loss as one module. DDP, ``torch.compile`` and the training loop call it with a batch."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """Move the batch to the model's device. For a GPU, pinned memory makes the copy asynchronous."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else leaf.to(device)
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return batch if device.type == "cpu" else tree_map(moved, batch)
