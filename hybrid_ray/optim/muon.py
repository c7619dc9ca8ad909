"""Muon (kellerjordan.github.io/posts/muon) for hidden matrices and AdamW for all other parameters, in one optimizer.

Both also with the slow average of AdEMAMix.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from hybrid_ray.optim.ademamix import STEPS_TAKEN, add_slow_steps_, slow_decay
from hybrid_ray.optim.streamed import loss_of

__all__ = ["MuonAdEMAMix", "MuonAdamW", "orthogonal_step"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonAdamW(AdamW):
    """Muon's step for groups with ``muon: True``, which must hold matrices; AdamW for the other groups.

    Muon's updates are scaled to the RMS of AdamW's (arXiv 2502.16982, section 2.2), so both share one learning rate and
    one weight decay. The state takes 4 bytes per parameter for Muon's matrices and 8 for the rest. The Newton-Schulz
    iteration runs in bf16, one whole matrix at a time.

    Args:
        momentum: of Muon, in Nesterov's form.
    """

    def __init__(self, params: Any, *, momentum: float = 0.95, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group.setdefault("muon", False)
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Returns what the closure returns."""
        loss = loss_of(closure)
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["muon"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW.load_state_dict expects it in every state
            state["step"] += 1
            buffer = state["momentum_buffer"].lerp_(gradient, 1.0 - momentum)
            step = orthogonal_step(self._direction(state, gradient, gradient.lerp(buffer, momentum)))
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(step.mul_(group["lr"]))

    def _direction(self, state: dict[str, Any], gradient: Tensor, fast: Tensor) -> Tensor:
        """What is made orthogonal: ``fast``, Muon's average of gradients."""
        return fast


class MuonAdEMAMix(MuonAdamW):
    """`MuonAdamW` with the slow average q of AdEMAMix (arXiv 2409.03137) in every step. A combination of our own.

    A matrix moves along m + alpha q, made orthogonal once, where m is Muon's average of gradients; so the step is as
    long as Muon's and takes hardly more time. The other parameters move as with `AdEMAMix`. alpha and the decay of q
    follow its schedules. The state takes 8 bytes per parameter for Muon's matrices and 12 for the rest.

    Args:
        alpha: weight of the slow average after ``total_steps``. It must be smaller than AdEMAMix's, where the slow part
            makes steps longer and does not displace the fast part.
        beta3: decay of the slow average after ``total_steps``.
        total_steps: optimizer steps of the run.
        options: those of `MuonAdamW`.
    """

    def __init__(
        self, params: Any, *, alpha: float = 2.0, beta3: float = 0.996, total_steps: int, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.final_alpha, self.beta3, self.total_steps = alpha, beta3, total_steps
        self.param_groups[0][STEPS_TAKEN] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Returns what the closure returns."""
        shared = self.param_groups[0]
        progress = min(1.0, (shared[STEPS_TAKEN] + 1) / self.total_steps)
        self._alpha, self._decay = self.final_alpha * progress, slow_decay(progress, self.beta3)
        loss = super().step(closure)
        for group in self.param_groups:
            if not group["muon"]:
                add_slow_steps_(self, group, alpha=self._alpha, decay=self._decay)
        shared[STEPS_TAKEN] += 1
        return loss

    def _direction(self, state: dict[str, Any], gradient: Tensor, fast: Tensor) -> Tensor:
        if "slow_buffer" not in state:
            state["slow_buffer"] = torch.zeros_like(gradient)
        return fast.add_(state["slow_buffer"].lerp_(gradient, 1.0 - self._decay), alpha=self._alpha)


def orthogonal_step(matrix: Tensor) -> Tensor:
    """Muon's update of a matrix at learning rate 1, a new fp32 tensor. The scale of ``matrix`` has no effect.

    The quintic Newton-Schulz iteration moves all singular values close to 1: in bf16 on a GPU, and in fp32 on a CPU,
    where a small matrix takes a fifth of bf16's time or less. The scale, 0.2 x sqrt(longer side), is that of AdamW's
    updates.
    """
    a, b, c = _COEFFICIENTS
    rows, columns = matrix.shape
    x = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16, copy=True)
    x = x if rows <= columns else x.T
    x.div_(x.norm().clamp_min(1e-7))
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x if rows <= columns else x.T
    return x.float().mul_(0.2 * math.sqrt(max(rows, columns)))
