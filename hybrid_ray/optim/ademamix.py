"""AdEMAMix (arXiv 2409.03137): AdamW with a second, slow average of gradients beside the fast one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW

from hybrid_ray.optim.slow_average import add_slow_step_, slow_decay
from hybrid_ray.optim.streamed import Streamed, loss_of

__all__ = ["AdEMAMix"]

_TAKEN = "steps_taken"  # kept in the first parameter group, so that it is saved and loaded with the rest


class _WithSlowStep(AdamW):
    """AdamW's step, then the step along the slow average. ``Streamed`` calls it once per window of weights."""

    alpha: float  # weight of the slow average in the current step
    decay: float  # decay of the slow average in the current step

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = loss_of(closure)
        super().step()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            for parameter, state in zip(parameters, states, strict=True):
                if "exp_avg_slow" not in state:
                    state["exp_avg_slow"] = torch.zeros_like(state["exp_avg"])
                state["exp_avg_slow"].lerp_(parameter.grad.to(state["exp_avg_slow"].dtype), 1.0 - self.decay)
            add_slow_step_(
                parameters,
                [state["exp_avg_slow"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["step"] for state in states],
                beta2=group["betas"][1],
                eps=group["eps"],
                size=group["lr"] * self.alpha,
            )
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
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        alpha: float = 8.0,
        beta3: float = 0.9999,
        total_steps: int,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self.final_alpha = alpha
        self.beta3 = beta3
        self.total_steps = total_steps
        self.param_groups[0][_TAKEN] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Returns what the closure returns."""
        shared = self.param_groups[0]
        progress = min(1.0, (shared[_TAKEN] + 1) / self.total_steps)
        self.alpha = self.final_alpha * progress
        self.decay = slow_decay(progress, self.beta3, first=shared["betas"][0])
        loss = super().step(closure)
        shared[_TAKEN] += 1
        return loss
