"""An endless random order per seed, independent of how it is divided into ranks, micro-batches and sessions."""

from typing import Any

import numpy as np
import numpy.typing as npt

from hybrid_ray.errors import ConfigError

__all__ = ["SharedStream", "StreamSampler"]

BLOCK = 4096  # items drawn at a time


class SharedStream:
    """Item n of the stream is a draw from ``range(places)`` that depends on the seed and n alone.

    A batch is the next ``batch_size`` items (over all ranks), and rank r takes the r-th contiguous slice. Two half
    batches, or the slices of two ranks, therefore hold the same items as one whole batch: runs that differ only in
    their ranks or micro-batches train on the same data in the same order.

    Raises:
        ConfigError: the batch can't be divided evenly among the ranks.
    """

    def __init__(self, *, places: int, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        if batch_size % world:
            raise ConfigError(f"batch_size is {batch_size} but must be a multiple of the {world} workers")
        self.places = places
        self.batch_size = batch_size
        self.seed = seed
        self.position = 0
        self._first = rank * batch_size // world
        self._mine = batch_size // world
        self._number = -1
        self._drawn = np.empty(0, dtype=np.int64)

    def next(self) -> npt.NDArray[np.int64]:
        """Return this rank's items of the next batch and advance by one batch."""
        items = self.items(self.position + self._first, self._mine)
        self.position += self.batch_size
        return items

    def items(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Items ``first`` to ``first + count - 1``."""
        pieces = []
        while count:
            number, place = divmod(first, BLOCK)
            pieces.append(self._block(number)[place : place + count])
            first += len(pieces[-1])
            count -= len(pieces[-1])
        return np.concatenate(pieces)

    def _block(self, number: int) -> npt.NDArray[np.int64]:
        if number != self._number:
            draw = np.random.Generator(np.random.Philox(key=self.seed, counter=[0, 0, 0, number]))
            self._number, self._drawn = number, draw.integers(0, self.places, BLOCK)
        return self._drawn

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, in items, and the parameters that define the stream."""
        return {"position": self.position, "seed": self.seed, "places": self.places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any rank, world and batch size.

        Raises:
            ConfigError: the state is from another stream (seed, corpus or sequence length).
        """
        for name, mine in (("seed", self.seed), ("places", self.places)):
            if state[name] != mine:
                raise ConfigError(f"the saved data position has {name} {state[name]} but this run has {mine}")
        self.position = state["position"]


class StreamSampler:
    """A sampler whose position is that of its ``stream``."""

    stream: SharedStream

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream; the same on every rank."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position. Raises `ConfigError` if the state is from another stream."""
        self.stream.load_state_dict(state)
