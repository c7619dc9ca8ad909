"""What a batch writes into a model besides gradients, such as BatchNorm's running numbers, and how to take it back."""

import torch

__all__ = ["ModuleBuffers"]

_LARGE = 65_536  # numbers


class ModuleBuffers:
    """Keeps the buffers of a model as they were before a batch, and puts them back.

    Large ones (masks, tables) that the first batch does not change are not copied again. A model without buffers costs
    nothing. (The count of writes that PyTorch keeps of a tensor says nothing: BatchNorm does not raise it.)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]
        self._known = False  # which large buffers batches write
        self._kept: list[tuple[torch.nn.Module, str, torch.Tensor, torch.Tensor]] = []

    def keep(self) -> None:
        """A batch is about to be computed."""
        self._kept = []
        for module, name in self._places:
            buffer = module._buffers.get(name)
            if buffer is not None:
                self._kept.append((module, name, buffer, buffer.detach().clone()))

    def settle(self, *, applied: bool) -> None:
        """The batch is done with. If it was not applied its buffers are as before, the very tensors."""
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
