"""The gradient of a real step, as in a plain training loop: micro-batches, ranks, norm and clipping."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from hybrid_ray.errors import ConfigError
from hybrid_ray.method.ranks import sum_over_ranks, world_size
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.weights import Weights

__all__ = ["Closure", "Gradient", "clip_gradients", "compute_gradients", "measure_gradients"]

Closure = Callable[[], torch.Tensor]

_BACKWARD = (
    "the closure called backward() itself: it must only return the loss; the trainer does backward, clipping, the "
    "optimizer's and the schedule's step and zero_grad"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gradient:
    """What is known about a gradient before it is applied. The numbers are the same on every rank."""

    loss: float  # mean over micro-batches and ranks
    norm: float  # of the whole model, before clipping
    along: float | None  # <gradient, predicted step>, right after a prediction
    norm_tensor: torch.Tensor  # the norm on the device, so that clipping needs no copy to the host

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def compute_gradients(
    model: torch.nn.Module,
    closure: Closure,
    *,
    accumulate: int,
    clock: StepClock,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
    fresh: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    """Forward and backward of ``accumulate`` micro-batches; ranks synchronise on the last. Returns the local loss.

    Args:
        scale: maps the loss to the scaled loss that backward starts from, for mixed precision.
        fresh: parameters without a gradient; used to detect a closure that calls backward itself.

    Raises:
        ConfigError: if the closure does not return a scalar tensor with a gradient, or calls backward itself.
    """
    total: torch.Tensor | None = None
    for micro in range(accumulate):
        last = micro == accumulate - 1
        with _synchronised_if(model, last):
            loss = closure()
            if micro == 0 and any(parameter.grad is not None for parameter in fresh):
                raise ConfigError(_BACKWARD)
            _check_loss(loss)
            scaled = loss / accumulate if accumulate > 1 else loss
            with clock.part("backward"):
                _backward(scale(scaled))
        total = scaled.detach() if total is None else total + scaled.detach()
    assert total is not None
    return total.reshape(())


def measure_gradients(weights: Weights, loss: torch.Tensor, along: torch.Tensor | None) -> Gradient:
    """Compute loss and norm over all ranks, with one small all-reduce and one wait for the device.

    A NaN or Inf on any rank makes the result NaN or Inf on every rank.

    Raises:
        ConfigError: if no parameter has a gradient.
    """
    pairs = [(g, share) for g, share in zip(weights.gradients(), weights.shares, strict=True) if g is not None]
    if not pairs:
        raise ConfigError("no parameter of the optimizer got a gradient: the closure's loss does not depend on any")
    if any(g.layout is not torch.strided for g, _ in pairs):
        raise ConfigError("a gradient is sparse, which can't be measured or clipped: make it dense (sparse=False)")
    half = pairs[0][0].dtype in (torch.bfloat16, torch.float16)
    norms = torch._foreach_norm([g for g, _ in pairs], 2, dtype=torch.float32 if half else None)
    stacked = torch.stack([norm.to(weights.device) for norm in norms])
    ranks = world_size()
    if ranks == 1:
        norm = torch.linalg.vector_norm(stacked)
        head = [loss.to(norm), norm]
    else:
        shares = stacked.new_tensor([share for _, share in pairs])
        head = [loss.to(stacked) / ranks, (stacked.square() * shares).sum()]
    numbers = torch.stack(head if along is None else [*head, along.to(stacked)])
    loss_sum, size, *product = sum_over_ranks(numbers)
    if ranks > 1:
        norm = numbers[1].sqrt()
        size = math.sqrt(size) if size >= 0.0 else size
    return Gradient(loss=loss_sum, norm=size, along=product[0] if product else None, norm_tensor=norm)


def clip_gradients(weights: Weights, gradient: Gradient, largest: float | None) -> None:
    """Scale all gradients so that their norm is at most ``largest``, with the arithmetic of ``clip_grad_norm_``."""
    if largest is None or gradient.norm <= 0.99 * largest:
        return
    factor = torch.clamp(largest / (gradient.norm_tensor + 1e-6), max=1.0)
    torch._foreach_mul_([g for g in weights.gradients() if g is not None], factor)


def _backward(loss: torch.Tensor) -> None:
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise ConfigError(_BACKWARD) from error
        raise


def _check_loss(loss: object) -> None:
    if not isinstance(loss, torch.Tensor):
        raise ConfigError(f"the loss is a {type(loss).__name__} but must be a scalar tensor")
    if loss.numel() != 1:
        raise ConfigError(f"the loss has shape {tuple(loss.shape)} but must be a scalar: take its mean")
    if not loss.requires_grad:
        raise ConfigError(
            "the loss has no gradient: compute it from the model, outside of torch.no_grad(); do not detach it"
        )


def _synchronised_if(model: torch.nn.Module, last: bool) -> AbstractContextManager[None]:
    """Let DDP or FSDP2 reduce gradients over ranks only on the last micro-batch."""
    switch = getattr(model, "set_requires_gradient_sync", None)
    if callable(switch):
        switch(last)
        return nullcontext()
    no_sync = getattr(model, "no_sync", None)
    if last or not callable(no_sync):
        return nullcontext()
    context: AbstractContextManager[None] = no_sync()
    return context
