"""Moves an optimizer's state to host memory during predicted steps, which do not need it.

This does not let a larger model train. It frees memory only in Predict, where no activations and gradients exist; the
peak of a run is set by its real steps, when the state is back on the device. PyTorch's allocator keeps the freed blocks
for this process, so other programs on the GPU gain nothing. Each uninterrupted series of predicted steps costs two
transfers of the state; a micro-correction is a real step and ends the series. To keep the state off the GPU throughout,
use ``train.optimizer_device: host``.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_ray.optim.local import local_part

__all__ = ["StateOffload", "state_tensors"]


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The plain tensors of an optimizer's state. DTensors give this rank's shard, other tensor classes their parts."""
    return [part for state in optimizer.state.values() for value in state.values() for part in _parts(value)]


class StateOffload:
    """Moves an optimizer's state to host memory and back.

    The state's tensors stay the same objects, and can be read, saved and loaded in both places. The host memory, as
    large as the state (8 bytes per parameter for Adam in fp32), is allocated at the first move and kept. For a GPU it
    is pinned, and PyTorch rounds each tensor up to a power of two. On a CPU the state is copied within one memory,
    which frees nothing: `freed_bytes` is 0.

    Args:
        optimizer: any optimizer; its state may still be empty.
        device: the device of its state during real steps.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._hosts: list[Tensor] = []
        self._away: list[Tensor] = []
        self.moved_bytes = 0  # moved to the host so far; as many move back
        self.freed_bytes = 0  # device memory freed by the last move to the host

    def leave(self) -> None:
        """Move the state to host memory and wait until it is there. Does nothing if it already is."""
        if self._away:
            return
        tensors = [t for t in state_tensors(self._optimizer) if t.device.type == self._device.type and t.dim()]
        self._hosts = [self._host(number, tensor) for number, tensor in enumerate(tensors)]
        for tensor, host in zip(tensors, self._hosts, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._wait()  # for the copies: next, their sources are freed and others may read the host tensors
        for tensor, host in zip(tensors, self._hosts, strict=True):
            tensor.data = host
        self._away = tensors
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.moved_bytes += moved
        self.freed_bytes = moved if self._device.type == "cuda" else 0

    def come_back(self) -> None:
        """Move the state back to the device. Does nothing if it already is there."""
        for tensor in self._away:
            tensor.data = tensor.to(self._device, non_blocking=True, copy=True)
        self._away = []

    def state_dict(self) -> dict[str, int]:
        """The two counts. The state itself is saved with the optimizer, and is loaded to the device."""
        return {"moved_bytes": self.moved_bytes, "freed_bytes": self.freed_bytes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.moved_bytes, self.freed_bytes = state["moved_bytes"], state["freed_bytes"]

    def _host(self, number: int, like: Tensor) -> Tensor:
        """Host memory for one tensor: that of the last move, if shape and type match."""
        if number < len(self._hosts) and _alike(self._hosts[number], like):
            return self._hosts[number]
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=self._device.type == "cuda")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _parts(value: Any) -> Iterator[Tensor]:
    if not isinstance(value, Tensor):
        return
    local = local_part(value) if hasattr(value, "to_local") else value
    names = getattr(local, "__tensor_flatten__", None)
    if names is None:
        yield local
    else:
        for name in names()[0]:
            yield from _parts(getattr(local, name))


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype
