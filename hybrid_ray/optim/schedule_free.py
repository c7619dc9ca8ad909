"""Schedule-free AdamW (arXiv 2405.15682), from the ``schedulefree`` package."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

__all__ = ["build_schedule_free", "evaluation_weights", "rewrites_weights"]


def build_schedule_free(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> Optimizer:
    """AdamW that computes gradients at one point and is evaluated at another, an average (`evaluation_weights`).

    Use it with ``train.schedule: constant`` (warmup, then a constant rate). ``betas[0]`` sets how close to the average
    gradients are computed. The state takes 8 bytes per parameter.
    """
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(groups, lr=lr, betas=betas)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def rewrites_weights(optimizer: Optimizer) -> bool:
    """Whether the optimizer recomputes the weights from its own state, which undoes changes made by others."""
    return callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside the block the model has the weights to evaluate; after it, those to train. In place."""
    if not rewrites_weights(optimizer):
        yield
        return
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
