"""Schedule-free AdamW (arXiv 2405.15682), of the ``schedulefree`` package."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

__all__ = ["build_schedule_free", "evaluation_weights", "rewrites_weights"]


def build_schedule_free(groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float]) -> Optimizer:
    """Trains at one point and is evaluated at another, an average of all before (`evaluation_weights`).

    The rate should rise and then stay: ``train.schedule: constant``. ``betas[0]`` says how far the point where
    gradients are taken lies towards the average. 8 bytes of state a parameter.
    """
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(groups, lr=lr, betas=betas)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def rewrites_weights(optimizer: Optimizer) -> bool:
    """Whether the optimizer computes weights from a state of its own, and so undoes what others add to them."""
    return callable(getattr(optimizer, "eval", None)) and callable(getattr(optimizer, "train", None))


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the weights are those that are to be evaluated; outside, those that are trained. In place."""
    if not rewrites_weights(optimizer):
        yield
        return
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
