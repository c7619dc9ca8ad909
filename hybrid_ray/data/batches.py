"""Batches from tokens: an endless, resumable training stream, and one pass over a held-out split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybrid_ray.config import Split
from hybrid_ray.data.corpus import Corpus
from hybrid_ray.errors import ConfigError

__all__ = ["BatchSampler", "heldout_batches"]

BLOCK = 4096  # sequences drawn at a time


class BatchSampler:
    """An endless stream of random windows, the same for a seed however it is cut into ranks and micro-batches.

    Sequence number n of the stream depends on the seed and n alone. A batch is the next ``batch_size`` sequences of the
    stream (over all ranks), and rank r takes its contiguous slice. Two half batches are therefore the same sequences as
    one whole batch, and so are two ranks: runs that differ in these train on the same data in the same order.

    Args:
        batch_size: sequences of one call over all ranks; a multiple of ``world``.
        sequence_length: T, tokens a sequence.

    Raises:
        ConfigError: a batch that can't be shared out, or a corpus shorter than a sequence.
    """

    def __init__(
        self, corpus: Corpus, *, batch_size: int, sequence_length: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise ConfigError(f"batch_size is {batch_size} but must be a multiple of the {world} workers")
        self.places = len(corpus.train) - sequence_length  # a window has one token more than its targets
        if self.places < 1:
            raise ConfigError(
                f"train.sequence_length is {sequence_length} but the corpus has {len(corpus.train):,} training tokens: "
                "shorten the sequences or give more text"
            )
        self.tokens = corpus.train
        self.batch_size = batch_size
        self.seed = seed
        self.slice = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.window = np.arange(sequence_length + 1)
        self.position = 0
        self.block_number = -1
        self.block = np.empty(0, dtype=np.int64)

    def next(self) -> tuple[Tensor, Tensor]:
        """This rank's tokens_BT and targets_BT (int64, on the CPU), and one batch forward in the stream."""
        mine = range(self.position + self.slice.start, self.position + self.slice.stop)
        starts = np.array([self._start(number) for number in mine])
        self.position += self.batch_size
        return _pair(self.tokens[starts[:, None] + self.window])

    def _start(self, number: int) -> int:
        block_number, place = divmod(number, BLOCK)
        if block_number != self.block_number:
            draw = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, block_number]))
            self.block = draw.integers(0, self.places, BLOCK)
            self.block_number = block_number
        return int(self.block[place])

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, in sequences, and what defines the stream."""
        return {"position": self.position, "seed": self.seed, "places": self.places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place, with any rank, world and batch size.

        Raises:
            ConfigError: the state is from another stream (seed, corpus or sequence length).
        """
        for name in ("seed", "places"):
            mine = getattr(self, name)
            if state[name] != mine:
                raise ConfigError(f"the saved data position has {name} {state[name]} but this run has {mine}")
        self.position = state["position"]


def heldout_batches(
    corpus: Corpus, split: Split, *, batch_size: int, sequence_length: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split in order: windows that don't overlap, each token a target once.

    The last batch may be smaller. Left out are the first token and the last ones that fill no window.
    """
    tokens = corpus.heldout[split]
    starts = np.arange((len(tokens) - 1) // sequence_length) * sequence_length
    window = np.arange(sequence_length + 1)
    for first in range(0, len(starts), batch_size):
        yield _pair(tokens[starts[first : first + batch_size, None] + window])


def _pair(windows: npt.NDArray[np.uint16]) -> tuple[Tensor, Tensor]:
    windows_BT = torch.from_numpy(windows.astype(np.int64))
    return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()
