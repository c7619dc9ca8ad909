"""Muon (kellerjordan.github.io/posts/muon) for hidden matrices and AdamW for all other parameters, in one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim._muon import (
    DEFAULT_A,
    DEFAULT_B,
    DEFAULT_C,
    DEFAULT_NS_STEPS,
    EPS,
    _adjust_lr,
    _zeropower_via_newtonschulz,
    muon,
)

from hybrid_ray.optim.streamed import loss_of

__all__ = ["MuonAdamW", "orthogonal_step"]

_COEFFICIENTS = (DEFAULT_A, DEFAULT_B, DEFAULT_C)
_SIZE = "match_rms_adamw"


class MuonAdamW(AdamW):
    """torch's Muon step for groups with ``muon: True``, which must hold matrices; AdamW for the other groups.

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
        matrices = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in matrices:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW.load_state_dict expects it in every state
            state["step"] += 1
        muon(
            matrices,
            [parameter.grad for parameter in matrices],
            [self.state[parameter]["momentum_buffer"] for parameter in matrices],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=True,
            ns_coefficients=_COEFFICIENTS,
            ns_steps=DEFAULT_NS_STEPS,
            eps=EPS,
            adjust_lr_fn=_SIZE,
            has_complex=False,
        )


def orthogonal_step(matrix: Tensor) -> Tensor:
    """Muon's update of a matrix at learning rate 1, a new fp32 tensor. The scale of ``matrix`` has no effect."""
    step = _zeropower_via_newtonschulz(matrix, _COEFFICIENTS, DEFAULT_NS_STEPS, EPS)
    return step.float().mul_(_adjust_lr(1.0, _SIZE, matrix.shape))
