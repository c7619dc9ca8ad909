"""AdamW that withstands gradient spikes: SPAM (arXiv 2501.06842) as the AdamWPrune baselines have it (AdamWSPAM)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from hybrid_ray.optim.local import local_part
from hybrid_ray.optim.streamed import StreamedAdamW, loss_of

__all__ = ["AdamWSPAM"]

HISTORY = 100  # gradient norms a spike is judged against
FEWEST = 10  # before any is judged


class AdamWSPAM(StreamedAdamW):
    """AdamW with three additions before each update.

    - A gradient entry is clipped to sqrt(theta * v), v Adam's own (bias-corrected) second moment of that entry.
    - A gradient norm more than ``z_score`` standard deviations above the last 100 softens the moments: m by half, v by
      a tenth. Where gradients are clipped by norm before, it is the clipped norm that is judged.
    - Every ``reset_every`` steps both moments and their bias correction start afresh, and the learning rate climbs back
      along half a cosine over ``warmup_steps``. The schedule's own rate is not touched.

    One host synchronisation a step (the norm), and a temporary fp32 tensor as large as the largest parameter (two where
    the state is on the host, which is then read once more a step). What it counts is kept in the first parameter group,
    so it is saved and loaded with the rest.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        theta: float = 50.0,
        z_score: float = 2.0,
        reset_every: int = 1000,
        warmup_steps: int = 150,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self.theta = theta
        self.z_score = z_score
        self.reset_every = reset_every
        self.warmup_steps = warmup_steps
        self.param_groups[0].update(steps_taken=0, gradient_norms=[])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. Returns what the closure returns."""
        loss = loss_of(closure)
        shared = self.param_groups[0]
        taken = shared["steps_taken"]
        if taken and taken % self.reset_every == 0:
            self._scale_moments(momentum=0.0, second=0.0)
        self._clip_spikes()
        if self._is_spike():
            self._scale_moments(momentum=0.5, second=0.9)
        self._update(self._warmup_factor(taken))
        shared["steps_taken"] = taken + 1
        return loss

    def _clip_spikes(self) -> None:
        for group in self.param_groups:
            decay = group["betas"][1]
            for parameter in group["params"]:
                state = self.state.get(parameter)
                if parameter.grad is None or not state:
                    continue
                correction = 1.0 - decay ** float(state["step"])
                if correction > 0.0:  # else nothing is known about this entry yet
                    gradient = local_part(parameter.grad)
                    second = local_part(state["exp_avg_sq"]).to(gradient.device)
                    limit = (second * (self.theta / correction)).sqrt_()
                    torch.clamp(gradient, min=-limit, max=limit, out=gradient)

    def _is_spike(self) -> bool:
        """Judge this step's gradient norm by those before it, and remember it. A non-finite one is neither."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = float(get_total_norm(gradients))
        earlier: list[float] = self.param_groups[0]["gradient_norms"]
        if not math.isfinite(norm):
            return False
        self.param_groups[0]["gradient_norms"] = [*earlier, norm][-HISTORY:]
        if len(earlier) < FEWEST:
            return False
        mean = sum(earlier) / len(earlier)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in earlier) / len(earlier))
        return norm > mean + self.z_score * deviation and deviation > 0.0

    def _scale_moments(self, *, momentum: float, second: float) -> None:
        for state in self.state.values():
            state["exp_avg"].mul_(momentum)
            state["exp_avg_sq"].mul_(second)
            if momentum == 0.0:
                state["step"].zero_()

    def _warmup_factor(self, taken: int) -> float:
        since = taken % self.reset_every
        if taken < self.reset_every or since >= self.warmup_steps:
            return 1.0
        return 0.5 * (1.0 - math.cos(math.pi * (since + 1) / (self.warmup_steps + 1)))

    def _update(self, factor: float) -> None:
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
