"""Batches of any map-style data set: an endless training stream, and one pass over a held-out split.

The stream depends only on seed and step. Items may draw random numbers (augmentation). Before each item is read, the
global random generators are seeded from the run's seed and the item's position in the stream. So an item is the same
for any number of ranks, for any micro-batch size, and after a resume.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b, sha256
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from hybrid_ray.data.split import STRETCHES
from hybrid_ray.data.stream import SharedStream, StreamSampler

__all__ = ["DatasetSampler", "Sampler", "dataset_fingerprint", "heldout_stretches", "own_draws"]

LOOKED_AT = 16  # maximum number of items per data set that the fingerprint reads

Collate = Callable[[Sequence[Any]], Any]


class Sampler(Protocol):
    """An endless training stream whose position can be saved and restored."""

    def next(self) -> Any:
        """This rank's part of the next batch, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class DatasetSampler(StreamSampler):
    """Random items of a data set, drawn with replacement in the order of a `SharedStream`.

    Args:
        batch_size: number of items per batch over all ranks; a multiple of ``world``.
    """

    def __init__(
        self, dataset: Dataset[Any], collate: Collate, *, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.stream = SharedStream(places=_length(dataset), batch_size=batch_size, seed=seed, rank=rank, world=world)
        self._dataset, self._collate = dataset, collate
        self._first = rank * batch_size // world

    def next(self) -> Any:
        """Return this rank's part of the next batch and advance by one batch."""
        first = self.stream.position + self._first
        items = self.stream.next()
        keys = [f"{self.stream.seed},{first + place}" for place in range(len(items))]
        return self._collate(_read(self._dataset, items.tolist(), keys))


def heldout_stretches(dataset: Dataset[Any], collate: Collate, *, most: int) -> Iterator[Any]:
    """One pass over a data set in order, in about 32 batches, or more if a batch would exceed ``most`` items."""
    length = _length(dataset)
    size = max(1, min(most, length // STRETCHES))
    for first in range(0, length, size):
        items = range(first, min(first + size, length))
        yield collate(_read(dataset, items, [f"held out,{item}" for item in items]))


def dataset_fingerprint(parts: Mapping[Any, Dataset[Any]]) -> str:
    """A hash of the data sets' lengths and of up to `LOOKED_AT` items of each, evenly spaced from first to last."""
    digest = sha256()
    for name in sorted(parts):
        length = _length(parts[name])
        digest.update(f"{name}: {length}".encode())
        items = sorted({round(place) for place in np.linspace(0, length - 1, LOOKED_AT).tolist()})
        for sample in _read(parts[name], items, [f"held out,{item}" for item in items]):
            for leaf in tree_leaves(sample):
                digest.update(_content(leaf))
    return digest.hexdigest()


@contextlib.contextmanager
def own_draws(*, seed: int | None = None) -> Iterator[None]:
    """Restore the CPU's global random generators after the block. If ``seed`` is given, seed them before it."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        if seed is not None:
            _seed(seed)
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def _read(dataset: Dataset[Any], items: Sequence[int], keys: Sequence[str]) -> list[Any]:
    samples = []
    with own_draws():
        for item, key in zip(items, keys, strict=True):
            _seed(int.from_bytes(blake2b(key.encode(), digest_size=4).digest()))
            samples.append(dataset[item])
    return samples


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, whose state the model uses
    np.random.seed(seed)
    random.seed(seed)


def _content(leaf: Any) -> bytes:
    if isinstance(leaf, np.ndarray | np.generic):
        leaf = torch.as_tensor(leaf)
    if isinstance(leaf, Tensor):
        raw = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{leaf.dtype} {tuple(leaf.shape)}".encode() + raw
    return repr(leaf).encode()


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
