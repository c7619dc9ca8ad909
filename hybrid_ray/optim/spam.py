"""AdamWSPAM: AdamW robust to gradient spikes, SPAM (arXiv 2501.06842) as in the baselines of AdamWPrune."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from hybrid_ray.optim.local import local_part
from hybrid_ray.optim.streamed import StreamedAdamW, loss_of

__all__ = ["AdamWSPAM"]

HISTORY = 100  # gradient norms that a new norm is compared with
FEWEST = 10  # norms needed before any comparison


class AdamWSPAM(StreamedAdamW):
    """AdamW with three additions before each update.

    - Each gradient entry is clipped to +-sqrt(theta * v), where v is Adam's bias-corrected second moment of that entry.
    - If the gradient norm is more than ``z_score`` standard deviations above the mean of the last 100, it is a spike: m
      is multiplied by 0.5 and v by 0.9. If gradients were clipped by norm before, the clipped norm counts.
    - Every ``reset_every`` steps both moments and their bias correction are reset, and the learning rate rises again
      along half a cosine over ``warmup_steps``. The schedule itself is not changed.

    A step needs one synchronisation with the host (the norm) and a temporary fp32 tensor as large as the largest
    parameter. With state in host memory it needs two, and reads the state once more. Counters are stored in the first
    parameter group, so they are saved and loaded with the state. ``options`` are those of `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Any,
        *,
        theta: float = 50.0,
        z_score: float = 2.0,
        reset_every: int = 1000,
        warmup_steps: int = 150,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
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
                if correction > 0.0:  # 0 before the first update, when there is no second moment yet
                    gradient = local_part(parameter.grad)
                    second = local_part(state["exp_avg_sq"]).to(gradient.device)
                    limit = (second * (self.theta / correction)).sqrt_()
                    torch.clamp(gradient, min=-limit, max=limit, out=gradient)

    def _is_spike(self) -> bool:
        """Whether this step's gradient norm is a spike compared with the earlier ones, to which it is added.

        A norm that is not finite is no spike and is not added.
        """
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
