"""One number a coordinate of the model, kept between steps: allocated once, updated in place."""

from collections.abc import Sequence

import torch

from hybrid_ray.hybrid.weights import Weights

__all__ = ["Buffers"]


class Buffers:
    """One tensor a parameter, shaped like it, zero at first. 4 bytes a coordinate in fp32.

    In bf16 (2 bytes) only tensors with two dimensions or more are narrow; biases and norms stay fp32. Results are
    rounded *stochastically*, so the error of a sum of windows is unbiased, but it is not small: opening a window writes
    the weights themselves, which bf16 holds to 0.4 %, and that error, about |w|/500 a coordinate, enters the
    displacement. A long average shrinks it; a short one (``time_constant`` below some tens of steps) at a small
    learning rate drowns in it.

    On the host the tensors are pinned where there is a GPU and are streamed through it one parameter at a time, at the
    price of a transfer each way for every use.
    """

    def __init__(self, weights: Weights, *, dtype: str = "float32", device: str = "model", seed: int = 0) -> None:
        like = weights.local()
        host = device == "host"
        pinned = host and torch.cuda.is_available()
        self._device = weights.device
        self._direct = not host and dtype == "float32"
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self.tensors = [
            torch.zeros(
                tensor.shape,
                dtype=torch.bfloat16 if dtype == "bfloat16" and tensor.dim() > 1 else torch.float32,
                device="cpu" if host else tensor.device,
                pin_memory=pinned,
            )
            for tensor in like
        ]

    def accumulate_(self, decay: float, others: Sequence[torch.Tensor], factor: float) -> None:
        """self = decay x self + factor x others."""
        if self._direct:
            if decay == 0.0:
                torch._foreach_zero_(self.tensors)
            elif decay != 1.0:
                torch._foreach_mul_(self.tensors, decay)
            torch._foreach_add_(self.tensors, list(others), alpha=factor)
            return
        for tensor, other in zip(self.tensors, others, strict=True):
            value = self._load(tensor).mul_(decay).add_(other.to(self._device), alpha=factor)
            self._store(tensor, value)

    def assign_(self, others: Sequence[torch.Tensor], factors: Sequence[float]) -> None:
        """self = factor x others, with one factor a parameter."""
        if self._direct:
            torch._foreach_copy_(self.tensors, list(others))
            torch._foreach_mul_(self.tensors, list(factors))
            return
        for tensor, other, factor in zip(self.tensors, others, factors, strict=True):
            self._store(tensor, self._load(other).mul_(factor))

    def multiply_(self, factors: Sequence[float]) -> None:
        """self = factor x self, with one factor a parameter."""
        if self._direct:
            torch._foreach_mul_(self.tensors, list(factors))
            return
        for tensor, factor in zip(self.tensors, factors, strict=True):
            self._store(tensor, self._load(tensor).mul_(factor))

    def put(self, number: int, value: torch.Tensor | None) -> None:
        """Write the tensor of one parameter, from fp32; None writes zeros."""
        if value is None:
            self.tensors[number].zero_()
        else:
            self._store(self.tensors[number], value)

    def add_to(self, targets: Sequence[torch.Tensor], fraction: float) -> None:
        """targets = targets + fraction x self, in one pass. The targets are weights; nothing is allocated for them."""
        if self.tensors[0].device == self._device:
            torch._foreach_add_(list(targets), self.tensors, alpha=fraction)
            return
        for target, tensor in zip(targets, self.tensors, strict=True):
            target.add_(tensor.to(target.device, non_blocking=True), alpha=fraction)

    def zero_(self) -> None:
        torch._foreach_zero_(self.tensors)

    def squares(self) -> list[torch.Tensor]:
        """The squared norm of each tensor, in fp32, wherever the tensor lives."""
        norms = torch._foreach_norm(self.tensors, 2, dtype=torch.float32)
        return [norm.square() for norm in norms]

    def state_dict(self) -> dict[str, object]:
        """The tensors themselves, not copies, as an optimizer's state has them."""
        return {"tensors": self.tensors, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        saved = state["tensors"]
        assert isinstance(saved, list)
        torch._foreach_copy_(self.tensors, saved)
        generator = state["generator"]
        assert isinstance(generator, torch.Tensor)
        self._generator.set_state(generator.cpu())

    def _load(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fresh fp32 copy on the model's device."""
        return tensor.to(self._device, torch.float32, copy=True)

    def _store(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        if tensor.dtype is torch.bfloat16:
            value = _round_stochastically(value, self._generator)
        tensor.copy_(value)


def _round_stochastically(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """fp32 with the 16 bits that bf16 lacks set to 0: up or down by chance, so that the mean stays the value."""
    bits = value.view(torch.int32)
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    return bits.add_(noise).bitwise_and_(-(1 << 16)).view(torch.float32)
