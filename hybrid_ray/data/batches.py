"""Batches from tokens: an endless, resumable training stream, and one pass over a held-out split."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybrid_ray.data.stream import SharedStream, StreamSampler
from hybrid_ray.errors import ConfigError

__all__ = ["BatchSampler", "heldout_batches"]

Tokens = npt.NDArray[np.uint16]


class BatchSampler(StreamSampler):
    """Draws random windows of the training text in the order of a ``SharedStream``.

    The order does not depend on the number of ranks or on the micro-batch size.

    Args:
        tokens: the training text, 1-D.
        batch_size: sequences per call, summed over all ranks; a multiple of ``world``.
        sequence_length: T, tokens per sequence.

    Raises:
        ConfigError: the batch can't be divided among the ranks, or the corpus is shorter than a sequence.
    """

    def __init__(
        self, tokens: Tokens, *, batch_size: int, sequence_length: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        places = len(tokens) - sequence_length  # a window has one token more than its targets
        if places < 1:
            raise ConfigError(
                f"train.sequence_length is {sequence_length} but the corpus has {len(tokens):,} training tokens: "
                "shorten the sequences or give more text"
            )
        self.stream = SharedStream(places=places, batch_size=batch_size, seed=seed, rank=rank, world=world)
        self.tokens = tokens
        self.window = np.arange(sequence_length + 1)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return this rank's tokens_BT and targets_BT (int64, on the CPU) and advance the stream by one batch."""
        return _pair(self.tokens[self.stream.next()[:, None] + self.window])


def heldout_batches(tokens: Tokens, *, batch_size: int, sequence_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a held-out split once, in order, as windows that don't overlap: each token is a target once.

    The last batch may be smaller. The first token is never a target, nor are the last ones that don't fill a window.
    """
    starts = np.arange((len(tokens) - 1) // sequence_length) * sequence_length
    window = np.arange(sequence_length + 1)
    for first in range(0, len(starts), batch_size):
        yield _pair(tokens[starts[first : first + batch_size, None] + window])


def _pair(windows: Tokens) -> tuple[Tensor, Tensor]:
    windows_BT = torch.from_numpy(windows.astype(np.int64))
    return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()
