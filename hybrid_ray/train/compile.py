"""torch.compile with evidence that it took. A compile that fails, or quietly compiles nothing, is said aloud."""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["Compiled", "compile_forward"]

log = logging.getLogger("hybrid_ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """How to call the model, and what is known about its compilation.

    ``graphs`` and ``breaks`` are dynamo's counts, ``first_seconds`` the first forward and backward (which compiles),
    ``later_seconds`` the one after it. ``took`` is False where the eager model is used.
    """

    forward: Callable[..., Tensor]
    took: bool
    graphs: int = 0
    breaks: int = 0
    first_seconds: float = 0.0
    later_seconds: float = 0.0

    def evidence(self) -> dict[str, Any]:
        """Plain values, for the run's result."""
        return {
            "compiled": self.took,
            "compiled_graphs": self.graphs,
            "graph_breaks": self.breaks,
            "first_seconds": self.first_seconds,
            "later_seconds": self.later_seconds,
        }


def compile_forward(
    model: nn.Module, warm_up: Callable[[Callable[..., Tensor]], None], *, backend: str = "inductor"
) -> Compiled:
    """Compile a model's forward (and so its backward) and run it twice to see that it did.

    The module itself stays as it is, so checkpoints, evaluation and the trainer see no wrapper.

    Args:
        model: the module as ranks train it.
        warm_up: does one forward and backward with the callable it is given, and waits for the device.

    Warns:
        RuntimeWarning: the compiler failed or compiled nothing; the eager forward is used.
    """
    # Other models compiled earlier in this process count towards dynamo's recompile limit, past which it goes back to
    # eager without a word.
    import torch._dynamo  # only here: it takes more than a second, and most runs do not compile

    torch._dynamo.reset()
    before = _counts()
    compiled = torch.compile(model, backend=backend)
    try:
        first = _seconds(warm_up, compiled)
        later = _seconds(warm_up, compiled)
    except RuntimeError as error:  # dynamo's own exceptions are of this kind
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        return _fallen_back(model, f"torch.compile failed: {str(error).splitlines()[0]}")
    graphs, breaks = (now - then for now, then in zip(_counts(), before, strict=True))
    if graphs == 0:
        return _fallen_back(model, "torch.compile compiled nothing")
    if breaks:
        log.warning("torch.compile left %d graph breaks: parts of the model run eagerly", breaks)
    return Compiled(forward=compiled, took=True, graphs=graphs, breaks=breaks, first_seconds=first, later_seconds=later)


def _fallen_back(model: nn.Module, reason: str) -> Compiled:
    warnings.warn(f"{reason}; the run goes on without it", RuntimeWarning, stacklevel=3)
    return Compiled(forward=model, took=False)


def _counts() -> tuple[int, int]:
    """Graphs compiled and graph breaks met so far in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def _seconds(warm_up: Callable[[Callable[..., Tensor]], None], forward: Callable[..., Tensor]) -> float:
    started = time.perf_counter()
    warm_up(forward)
    return time.perf_counter() - started
