"""What a run needs of its data, whatever the data are: batches for training, and held-out splits read once."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from hybrid_ray.config import DataConfig, Split
from hybrid_ray.data.corpus import prepare_text
from hybrid_ray.data.digits import prepare_digits

__all__ = ["Dataset", "Sampler", "prepare"]


class Sampler(Protocol):
    """An endless training stream that can be left and gone on with."""

    def next(self) -> tuple[Tensor, Tensor]:
        """This rank's inputs and targets of the next batch, on the CPU."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Dataset(Protocol):
    """Training data and three held-out splits. A model of such data is ``model(inputs, targets)``, its mean loss.

    ``fingerprint`` is a hash of all that made the data, ``classes`` how many values a target can take.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def classes(self) -> int: ...

    def sampler(self, *, batch_size: int, sequence_length: int, seed: int, rank: int = 0, world: int = 1) -> Sampler:
        """Training batches from their start: ``batch_size`` examples over all ranks, a share of it for each."""
        ...

    def stretches(self, split: Split, *, sequence_length: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over a split in some 32 batches of neighbouring examples; the last may be smaller."""
        ...


def prepare(config: DataConfig) -> Dataset:
    """The data of a job, made on the first call and read from the cache after that, by any number of processes.

    Raises:
        ConfigError: the corpus is not there, or too small.
    """
    return prepare_digits(config.cache_dir) if config.corpus == "digits" else prepare_text(config)
