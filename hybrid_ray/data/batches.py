"""Batches from tokens: an endless, resumable training stream, and one pass over a held-out split."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hybrid_ray.data.stream import SharedStream
from hybrid_ray.errors import ConfigError

__all__ = ["BatchSampler", "heldout_batches"]

Tokens = npt.NDArray[np.uint16]


class BatchSampler:
    """Random windows of the training text in the order of a ``SharedStream``: the same for any ranks and micro-batches.

    Args:
        tokens: the training text, 1-D.
        batch_size: sequences of one call over all ranks; a multiple of ``world``.
        sequence_length: T, tokens a sequence.

    Raises:
        ConfigError: a batch that can't be shared out, or a corpus shorter than a sequence.
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
        """This rank's tokens_BT and targets_BT (int64, on the CPU), and one batch forward in the stream."""
        return _pair(self.tokens[self.stream.next()[:, None] + self.window])

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream; the same on every rank."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved place. Raises ConfigError where the state is from another stream."""
        self.stream.load_state_dict(state)


def heldout_batches(tokens: Tokens, *, batch_size: int, sequence_length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a held-out split in order: windows that don't overlap, each token a target once.

    The last batch may be smaller. Left out are the first token and the last ones that fill no window.
    """
    starts = np.arange((len(tokens) - 1) // sequence_length) * sequence_length
    window = np.arange(sequence_length + 1)
    for first in range(0, len(starts), batch_size):
        yield _pair(tokens[starts[first : first + batch_size, None] + window])


def _pair(windows: Tokens) -> tuple[Tensor, Tensor]:
    windows_BT = torch.from_numpy(windows.astype(np.int64))
    return windows_BT[:, :-1].contiguous(), windows_BT[:, 1:].contiguous()
