"""AdamWPrune: AdamW that prunes during training, by scores from Adam's moments or by plain magnitude."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hybrid_ray.config import PruneScore
from hybrid_ray.optim.streamed import StreamedAdamW, loss_of

__all__ = ["AdamWPrune", "sparsity_at"]

EPSILON = 1e-8


def sparsity_at(step: int, *, target: float, start: int, end: int) -> float:
    """Share of weights to prune at ``step``: AdamWPrune's cubic ramp from 0 at ``start`` to ``target`` at ``end``."""
    progress = min(1.0, max(0.0, (step - start) / max(1, end - start)))
    return target * progress**3


class AdamWPrune(StreamedAdamW):
    """AdamW that permanently prunes the least important weights of its groups with ``prune=True``.

    Importance scores, as named in the AdamWPrune experiments (m and v are Adam's moments):
    ``bitter0`` |w| |m| |w| / sqrt(v); ``bitter1`` |w|, magnitude pruning; ``bitter7`` |w| (v^(1/4) + eps).

    Every ``prune_every`` steps the share given by ``sparsity_at`` is set to zero, with one threshold for all prunable
    weights. A pruned weight scores 0, so it stays pruned. In bf16 many weights have equal scores; those at the
    threshold are all pruned. A global threshold needs all weights on one rank, so shards (FSDP) cannot be pruned.

    A mask takes one byte per prunable weight, on the weight's device; the scores take four bytes per weight during
    pruning. Weights that a predicted step moves are masked again by the next real step. ``options`` are those of
    `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Any,
        *,
        score: PruneScore = "bitter7",
        target_sparsity: float = 0.5,
        start: int,
        end: int,
        prune_every: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self.score = score
        self.target_sparsity = target_sparsity
        self.start = start
        self.end = end
        self.prune_every = prune_every
        self.param_groups[0].update(steps_taken=0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of the weights that are not pruned. Returns what the closure returns."""
        loss = loss_of(closure)
        for parameter, mask in self._masked():
            if parameter.grad is not None:
                parameter.grad.mul_(mask)
        super().step()
        self.param_groups[0]["steps_taken"] += 1
        taken = self.param_groups[0]["steps_taken"]
        if taken % self.prune_every == 0 or taken == self.end:
            self._prune(sparsity_at(taken, target=self.target_sparsity, start=self.start, end=self.end))
        for parameter, mask in self._masked():
            parameter.mul_(mask)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, and convert the masks, which the base class casts to float, back to bool."""
        super().load_state_dict(state_dict)
        for parameter, mask in [*self._masked()]:
            self.state[parameter]["mask"] = mask.to(parameter.device, torch.bool)

    def sparsity(self) -> float:
        """Share of the prunable weights that are zero."""
        prunable = self._prunable()
        zeros = sum(int((parameter == 0).sum()) for parameter in prunable)
        return zeros / max(1, sum(parameter.numel() for parameter in prunable))

    def _prunable(self) -> list[Tensor]:
        return [parameter for group in self.param_groups if group.get("prune") for parameter in group["params"]]

    def _masked(self) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter in self._prunable():
            if "mask" in self.state[parameter]:
                yield parameter, self.state[parameter]["mask"]

    def _prune(self, sparsity: float) -> None:
        ready = [parameter for parameter in self._prunable() if "exp_avg" in self.state[parameter]]
        scores = [self._importance(parameter) for parameter in ready]
        pruned = int(sparsity * sum(score.numel() for score in scores))
        if pruned:
            threshold = torch.cat([score.flatten() for score in scores]).kthvalue(pruned).values
            for parameter, score in zip(ready, scores, strict=True):
                self.state[parameter]["mask"] = score > threshold

    def _importance(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        magnitude = parameter.abs()
        first: Tensor = state["exp_avg"].to(parameter.device)
        second: Tensor = state["exp_avg_sq"].to(parameter.device)
        if self.score == "bitter1":
            return magnitude
        if self.score == "bitter7":
            return magnitude * (second.sqrt().sqrt_() + EPSILON)
        return magnitude.square() * first.abs() / (second.sqrt() + EPSILON)
