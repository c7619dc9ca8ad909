"""Buffers with one number per coordinate of the model, kept between steps: allocated once, updated in place."""

from collections.abc import Sequence

import torch

from hybrid_ray.method.weights import Weights
from hybrid_ray.optim.local import pieces
from hybrid_ray.optim.rounding import Rounding, is_narrow

__all__ = ["Buffers"]


class Buffers:
    """One tensor per parameter, of the same shape, initially zero. 4 bytes per coordinate in fp32.

    With bf16 (2 bytes), only tensors with two or more dimensions are bf16; biases and norms stay fp32. Results are
    rounded *stochastically*, so the error of a sum of windows is unbiased, but it is not small: opening a window writes
    the weights themselves, whose relative precision in bf16 is 0.4 %, and this error, about |w|/500 per coordinate,
    enters the displacement. A long average reduces it. With a short average (``time_constant`` below some tens of
    steps) and a small learning rate, the error exceeds the signal.

    Buffers on the host are streamed through the model's device in their own dtype: each use copies them to the device,
    and each change copies them back, which blocks. For a GPU they are pinned, and PyTorch rounds the size of each
    tensor up to a power of two. With bf16 or on the host, temporaries have at most ``optim.local.PIECE`` elements.

    Weights in bf16 are read exactly and updated with the same stochastic rounding. A displacement therefore includes
    the rounding noise of the real steps in its window, which is unbiased.
    """

    def __init__(self, weights: Weights, *, dtype: str = "float32", device: str = "model", seed: int = 0) -> None:
        like = weights.local()
        host = device == "host"
        pinned = host and weights.device.type == "cuda"
        self._on_host = host
        self._device = weights.device
        self._direct = not host and dtype == "float32"
        self._rounding = Rounding(self._device, seed)
        self.tensors = [
            torch.zeros(
                tensor.shape,
                dtype=torch.bfloat16 if dtype == "bfloat16" and tensor.dim() > 1 else torch.float32,
                device="cpu" if host else tensor.device,
                pin_memory=pinned,
            )
            for tensor in like
        ]

    @property
    def direct(self) -> bool:
        """Whether ``tensors`` are fp32 on the model's device, so that arithmetic may be done in them."""
        return self._direct

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
            self._rounding.begin()
            for mine, theirs in pieces(tensor, other):
                self._store(mine, self._load(mine).mul_(decay).add_(theirs.to(self._device), alpha=factor))

    def average_(self, others: Sequence[torch.Tensor | None], share: float) -> None:
        """self = self + share x (others - self). A tensor whose other is None does not change."""
        pairs = [(mine, theirs) for mine, theirs in zip(self.tensors, others, strict=True) if theirs is not None]
        if self._direct and not any(is_narrow(theirs) for _, theirs in pairs):
            torch._foreach_lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], share)
            return
        for tensor, other in pairs:
            self._rounding.begin()
            for mine, theirs in pieces(tensor, other):
                self._store(mine, self._load(mine).lerp_(theirs.to(self._device).float(), share))

    def assign_(self, others: Sequence[torch.Tensor], factors: Sequence[float]) -> None:
        """self = factor x others, with one factor per parameter."""
        if self._direct:
            torch._foreach_copy_(self.tensors, list(others))
            torch._foreach_mul_(self.tensors, list(factors))
            return
        for tensor, other, factor in zip(self.tensors, others, factors, strict=True):
            self._rounding.begin()
            for mine, theirs in pieces(tensor, other):
                self._store(mine, self._load(theirs).mul_(factor))

    def multiply_(self, factors: Sequence[float]) -> None:
        """self = factor x self, with one factor per parameter."""
        if self._direct:
            torch._foreach_mul_(self.tensors, list(factors))
            return
        for tensor, factor in zip(self.tensors, factors, strict=True):
            self._rounding.begin()
            for mine, _ in pieces(tensor, tensor):
                self._store(mine, self._load(mine).mul_(factor))

    def put(self, number: int, value: torch.Tensor | None) -> None:
        """Write the tensor of one parameter from an fp32 ``value``, which may be overwritten; None writes zeros."""
        if value is None:
            self.tensors[number].zero_()
        else:
            self._rounding.begin()
            self._store(self.tensors[number], value.to(self._device))

    def add_to(self, targets: Sequence[torch.Tensor], fraction: float) -> None:
        """targets = targets + fraction x self, in one pass. The targets are the weights, updated in place.

        Weights in bf16 are rounded stochastically: after adding and subtracting the same value, they differ from the
        start by at most two rounding errors.
        """
        if self.tensors[0].device == self._device and not any(map(is_narrow, targets)):
            torch._foreach_add_(list(targets), self.tensors, alpha=fraction)
            return
        for target, tensor in zip(targets, self.tensors, strict=True):
            if is_narrow(target):
                self._rounding.add(target, tensor, fraction)
            else:
                for mine, theirs in pieces(target, tensor):
                    mine.add_(theirs.to(target.device, non_blocking=True), alpha=fraction)

    def zero_(self) -> None:
        torch._foreach_zero_(self.tensors)

    def squares(self) -> list[torch.Tensor]:
        """The squared norm of each tensor, in fp32, on the model's device."""
        if self._on_host:
            return [self._square(tensor) for tensor in self.tensors]
        norms = torch._foreach_norm(self.tensors, 2, dtype=torch.float32)
        return list(torch._foreach_mul(norms, norms))

    def _square(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = [torch.linalg.vector_norm(self._load(mine)).square() for mine, _ in pieces(tensor, tensor)]
        return torch.stack(parts).sum()

    def state_dict(self) -> dict[str, object]:
        """The tensors themselves, not copies, as in an optimizer's ``state_dict``."""
        return {"tensors": self.tensors, "draws": self._rounding.draws}

    def load_state_dict(self, state: dict[str, object]) -> None:
        saved = state["tensors"]
        assert isinstance(saved, list)
        torch._foreach_copy_(self.tensors, saved)
        draws = state["draws"]
        assert isinstance(draws, int)
        self._rounding.draws = draws

    def _load(self, tensor: torch.Tensor) -> torch.Tensor:
        """A new fp32 copy on the model's device. A bf16 tensor is transferred as bf16 and converted there."""
        return tensor.to(self._device, non_blocking=True, copy=not is_narrow(tensor)).float()

    def _store(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Write an fp32 value from the model's device into ``tensor``; ``value`` may be overwritten."""
        if is_narrow(tensor):
            self._rounding.write(tensor, value)
        else:
            tensor.copy_(value)
