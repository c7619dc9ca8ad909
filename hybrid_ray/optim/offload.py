"""An optimizer's state in host memory while no step needs it: through each Predict phase.

What it is not: a way to train a larger model. It frees memory in Predict only, where no activation and no gradient
exists and memory is at its lowest anyway; a run's peak is set by its real steps, at which the state is back. What it
frees is free for this process: PyTorch's allocator keeps the blocks, so other programs on the GPU get nothing. It costs
two transfers of the state for each stretch of predicted steps; a micro-correction is a real step and ends a stretch.
State that is to stay off the GPU is ``train.optimizer_device: host``.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_ray.optim.local import local_part

__all__ = ["StateOffload", "state_tensors"]


def state_tensors(optimizer: Optimizer) -> list[Tensor]:
    """The plain tensors an optimizer's state is made of: this rank's shards of DTensors, the parts of other classes."""
    return [part for state in optimizer.state.values() for value in state.values() for part in _parts(value)]


class StateOffload:
    """Moves an optimizer's state to host memory and back. The state's tensors stay the same objects, and can be read,
    saved and loaded wherever they are.

    On the host it takes as many bytes as on the device (8 a parameter for Adam in fp32), allocated at the first move
    and kept. Where that is a GPU they are pinned, and PyTorch rounds each tensor up to a power of two. On a CPU the
    move is made all the same, between two places in one memory: it frees nothing, and `freed_bytes` says so.

    Args:
        optimizer: any; its state may still be empty.
        device: where its state lives otherwise.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self._device = device
        self._hosts: list[Tensor] = []
        self._away: list[Tensor] = []
        self.moved_bytes = 0  # to the host, all moves so far; as many come back
        self.freed_bytes = 0  # of the device's memory, by the last move to the host

    def leave(self) -> None:
        """Move the state to host memory, and wait for it. Does nothing if it is there."""
        if self._away:
            return
        tensors = [t for t in state_tensors(self._optimizer) if t.device.type == self._device.type and t.dim()]
        self._hosts = [self._host(number, tensor) for number, tensor in enumerate(tensors)]
        for tensor, host in zip(tensors, self._hosts, strict=True):
            host.copy_(tensor, non_blocking=True)
        self._wait()  # for the copies: their sources are freed, and anyone may read them on the host
        for tensor, host in zip(tensors, self._hosts, strict=True):
            tensor.data = host
        self._away = tensors
        moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.moved_bytes += moved
        self.freed_bytes = moved if self._device.type == "cuda" else 0

    def come_back(self) -> None:
        """Move the state back to the device. Does nothing if it is there."""
        for tensor in self._away:
            tensor.data = tensor.to(self._device, non_blocking=True, copy=True)
        self._away = []

    def state_dict(self) -> dict[str, int]:
        """The counts. Where the state was does not matter: it is saved with the optimizer, and loaded to the device."""
        return {"moved_bytes": self.moved_bytes, "freed_bytes": self.freed_bytes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.moved_bytes, self.freed_bytes = state["moved_bytes"], state["freed_bytes"]

    def _host(self, number: int, like: Tensor) -> Tensor:
        """Memory for one tensor, that of the last move if it fits."""
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
