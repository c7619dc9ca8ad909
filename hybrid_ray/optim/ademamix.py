"""AdEMAMix (arXiv 2409.03137): AdamW with a second, slow average of gradients next to the fast one.

The optimizer steps along the slow average in every real step. The predictor ``predictors/slow_momentum.py`` shares its
decay, and takes several of these steps at once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from hybrid_ray.optim.local import PIECE, local_part, pieces
from hybrid_ray.optim.streamed import Streamed, loss_of

__all__ = ["FIRST_DECAY", "STEPS_TAKEN", "AdEMAMix", "add_slow_step_", "add_slow_steps_", "slow_decay"]

STEPS_TAKEN = "steps_taken"  # kept in the first parameter group, so that it is saved and loaded with the rest

FIRST_DECAY = 0.9
"""Decay of the slow average at the start of a run: that of the fast average, as in the paper."""


def slow_decay(progress: float, beta3: float, *, first: float = FIRST_DECAY) -> float:
    """Decay of the slow average at ``progress`` (0 to 1) of the run, from ``first`` to ``beta3``.

    Its *half-life* is interpolated linearly (f_beta3 in the paper, equation 4). Interpolating the decay itself would
    keep the average short for nearly all of the run.
    """
    if beta3 <= first:
        return beta3
    half_life = (1.0 - progress) * _half_life(first) + progress * _half_life(beta3)
    return math.exp(math.log(0.5) / half_life)


def _half_life(decay: float) -> float:
    """Number of steps after which the weight of a gradient has halved."""
    return math.log(0.5) / math.log(decay)


def add_slow_step_(
    weights: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    beta2: float,
    eps: float,
    size: float,
) -> None:
    """w -= size x q / (sqrt(v / (1 - beta2^t)) + eps), in place, on this rank's part of each tensor.

    Needs two temporary tensors of at most `optim.local.PIECE` elements, and no synchronisation with the device.

    Args:
        weights: w.
        averages: q, one per weight; not bias-corrected, as in the paper.
        squares: v, Adam's second moments.
        steps: t, Adam's update counts, one per weight.
    """
    locals_ = [[local_part(tensor) for tensor in tensors] for tensors in (weights, averages, squares)]
    for start, stop in _runs(locals_[0]):
        target, average, square = (tensors[start:stop] for tensors in locals_)
        correction = [1.0 - beta2**step for step in steps[start:stop]]
        if stop - start == 1:
            for (mine, q), (_, v) in zip(pieces(target[0], average[0]), pieces(target[0], square[0]), strict=True):
                mine.addcdiv_(q, (v / correction[0]).sqrt_().add_(eps), value=-size)
            continue
        roots = torch._foreach_div(square, correction)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, eps)
        torch._foreach_addcdiv_(target, average, roots, value=-size)


def _runs(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive tensors with at most `PIECE` elements in total; a larger tensor is a range by itself."""
    start, size = 0, 0
    for place, tensor in enumerate(tensors):
        if place > start and size + tensor.numel() > PIECE:
            yield start, place
            start, size = place, 0
        size += tensor.numel()
    if tensors:
        yield start, len(tensors)


def add_slow_steps_(optimizer: AdamW, group: dict[str, Any], *, alpha: float, decay: float) -> None:
    """Add this step's gradients to the slow averages of a group and step along them; AdamW's step has been taken."""
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    if not parameters:
        return
    states = [optimizer.state[parameter] for parameter in parameters]
    for parameter, state in zip(parameters, states, strict=True):
        if "exp_avg_slow" not in state:
            state["exp_avg_slow"] = torch.zeros_like(state["exp_avg"])
        state["exp_avg_slow"].lerp_(parameter.grad.to(state["exp_avg_slow"].dtype), 1.0 - decay)
    add_slow_step_(
        parameters,
        [state["exp_avg_slow"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        beta2=group["betas"][1],
        eps=group["eps"],
        size=group["lr"] * alpha,
    )


class _WithSlowStep(AdamW):
    """AdamW's step, then the step along the slow average. ``Streamed`` calls it once per window of weights."""

    alpha: float  # weight of the slow average in the current step
    decay: float  # decay of the slow average in the current step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = loss_of(closure)
        super().step()
        for group in self.param_groups:
            add_slow_steps_(self, group, alpha=self.alpha, decay=self.decay)
        return loss


class AdEMAMix(Streamed, _WithSlowStep):
    """w -= lr ((m + alpha q) / (sqrt(v) + eps) + decay w): m and v as in AdamW, q the slow average of gradients.

    Over ``total_steps`` alpha grows linearly from 0, and the half-life of q grows linearly from that of ``betas[0]`` to
    that of ``beta3`` (the paper's schedulers); then both stay constant. The state takes 12 bytes per parameter, AdamW's
    8. The number of steps taken is stored in the first parameter group.

    Args:
        alpha: weight of the slow average after ``total_steps``. The paper uses 5 to 10.
        beta3: decay of the slow average after ``total_steps``.
        total_steps: optimizer steps of the run.
        options: those of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Any,
        *,
        alpha: float = 8.0,
        beta3: float = 0.9999,
        total_steps: int,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self.final_alpha = alpha
        self.beta3 = beta3
        self.total_steps = total_steps
        self.param_groups[0][STEPS_TAKEN] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Returns what the closure returns."""
        shared = self.param_groups[0]
        progress = min(1.0, (shared[STEPS_TAKEN] + 1) / self.total_steps)
        self.alpha = self.final_alpha * progress
        self.decay = slow_decay(progress, self.beta3, first=shared["betas"][0])
        loss = super().step(closure)
        shared[STEPS_TAKEN] += 1
        return loss
