"""The buffers that a batch changes in a model, such as BatchNorm's running statistics, and how to restore them."""

import torch

__all__ = ["ModuleBuffers"]

_LARGE = 65_536  # elements


class ModuleBuffers:
    """Copies the buffers of a model before a batch, and restores them if the batch is skipped.

    Large buffers (masks, tables) that the first batch does not change are not copied again. A model without buffers
    costs nothing. (PyTorch's version counter of a tensor cannot be used: BatchNorm does not increment it.)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]
        self._known = False  # whether it is known which large buffers a batch changes
        self._kept: list[tuple[torch.nn.Module, str, torch.Tensor, torch.Tensor]] = []

    def keep(self) -> None:
        """Copy the buffers before a batch is computed."""
        self._kept = []
        for module, name in self._places:
            buffer = module._buffers.get(name)
            if buffer is not None:
                self._kept.append((module, name, buffer, buffer.detach().clone()))

    def settle(self, *, applied: bool) -> None:
        """End a batch. If it was not applied, restore the buffers: the same tensor objects with the old values."""
        if not applied:
            for module, name, buffer, before in self._kept:
                with torch.no_grad():
                    buffer.copy_(before)
                module._buffers[name] = buffer
        elif not self._known:
            self._known = True
            self._places = [
                (module, name)
                for module, name, buffer, before in self._kept
                if buffer.numel() <= _LARGE
                or module._buffers.get(name) is not buffer
                or not torch.equal(buffer, before)
            ]
        self._kept = []
