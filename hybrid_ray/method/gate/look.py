"""A look at held-out data: the loss of one batch, without gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hybrid_ray.method.ranks import sum_over_ranks, world_size

__all__ = ["Decide", "Look"]

Decide = Callable[[int], torch.Tensor]
"""Look number -> the mean loss of a held-out batch (of this rank); the same number gives the same batch."""


class Look:
    """Measures the loss of one held-out batch before and after every ``every``-th cycle.

    The loss of one batch before and after is a less noisy measure of a cycle than the losses of training batches.

    Args:
        model: is in evaluation mode during a look.
        decide: computes the loss.
        every: cycles from one look to the next; 0: never look.
    """

    def __init__(self, model: torch.nn.Module, decide: Decide | None, *, every: int) -> None:
        self._model = model
        self._decide = decide
        self._every = every if decide is not None else 0
        self._cycles = 0

    def before_cycle(self) -> float:
        """The loss before the coming cycle; NaN if this cycle is not looked at. Collective."""
        self._cycles += 1
        return self._loss() if self._looks else float("nan")

    def after_cycle(self) -> float:
        """The loss of the same batch after the cycle; NaN if it is not looked at. Collective."""
        return self._loss() if self._looks else float("nan")

    @property
    def _looks(self) -> bool:
        return self._every > 0 and self._cycles > 0 and self._cycles % self._every == 0

    def _loss(self) -> float:
        assert self._decide is not None
        training = [module for module in self._model.modules() if module.training]
        self._model.eval()
        with torch.no_grad():
            loss = self._decide(self._cycles // self._every)
        for module in training:
            module.training = True
        return sum_over_ranks((loss.detach().double() / world_size()).reshape(1))[0]

    def state_dict(self) -> dict[str, Any]:
        return {"cycles": self._cycles}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._cycles = state["cycles"]
