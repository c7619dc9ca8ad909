"""Runs torch.compile and checks that it worked: a compilation that fails, or compiles nothing, is reported."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor, nn

from hybrid_ray.training.hardware.out_of_memory import free_memory, is_out_of_memory

__all__ = ["Compiled", "compile_forward"]

log = logging.getLogger("hybrid_ray")

TIMED = 5  # timed runs of forward and backward, compiled and eager each; their median counts
Forward = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """How to call the model, and evidence of its compilation.

    If compilation worked, ``first_seconds`` is long and ``step_seconds`` is below ``eager_seconds``. ``took`` is False
    if the eager model is used.
    """

    forward: Forward
    took: bool
    reason: str = ""  # why the eager model is used
    graphs: int = 0  # dynamo's count of compiled graphs
    breaks: int = 0  # dynamo's count of graph breaks
    first_seconds: float = 0.0  # the first forward and backward, which compiles
    step_seconds: float = 0.0  # median of later forwards and backwards
    eager_seconds: float | None = None  # the same of the eager model; None: it did not fit, or was not timed
    counted: int = 0  # dynamo's count of graphs at the end of the start-up

    def started(self) -> Self:
        """Mark the end of the start-up: graphs compiled from here on count as recompilations."""
        return replace(self, counted=_counts()[0]) if self.took else self

    @property
    def recompilations(self) -> int:
        """Graphs compiled since the start-up. Each one paused the run, and its seconds are in some step's time."""
        return _counts()[0] - self.counted if self.took else 0

    def say_recompilations(self) -> None:
        """Warn at the end of a run if there were any."""
        if self.recompilations:
            log.warning(
                "torch.compile compiled %d more graphs during the run: the times of some steps include the compilation",
                self.recompilations,
            )

    def evidence(self) -> dict[str, Any]:
        """Plain values, for the run's result."""
        return {
            "compiled": self.took,
            "compiled_graphs": self.graphs,
            "graph_breaks": self.breaks,
            "recompilations": self.recompilations,
            "compile_first_seconds": self.first_seconds,
            "compiled_step_seconds": self.step_seconds,
            "eager_step_seconds": self.eager_seconds,
        }


def compile_forward(
    model: nn.Module, warm_up: Callable[[Forward], None], *, alone: bool = True, backend: str = "inductor"
) -> Compiled:
    """Compile a model's forward and backward, and run them a few times to check that it worked.

    The module itself is not changed, so checkpoints, evaluation and the trainer see no wrapper.

    Args:
        model: the module as the ranks train it.
        warm_up: runs one forward and backward with the callable it gets, and waits for the device.
        alone: whether the warm-up runs without other ranks. If they take part, they would wait for ever for a rank that
            fell back to eager; so a failure raises, and the eager model, which may not fit on some rank, is not timed.
        backend: of ``torch.compile``.

    Raises:
        RuntimeError: out of memory, or the compiler failed on a rank that is not ``alone``.

    Warns:
        RuntimeWarning: the compiler failed or compiled nothing, so the eager forward is used.
    """
    # Models compiled earlier in this process count towards dynamo's recompile limit, beyond which it silently runs
    # eager code: reset the count.
    import torch._dynamo  # here, because the import takes more than a second and most runs do not compile

    torch._dynamo.reset()
    before = _counts()
    compiled = torch.compile(model, backend=backend)
    try:
        first = _seconds(warm_up, compiled)
        step = _median_seconds(warm_up, compiled)
    except RuntimeError as error:  # dynamo's exceptions are subclasses
        if is_out_of_memory(error):
            raise
        if not alone:
            raise RuntimeError(
                "torch.compile failed on a rank of a sharded model: set train.compile to false"
            ) from error
        return _fallen_back(model, f"torch.compile failed: {str(error).splitlines()[0]}")
    counted, broken = _counts()
    if counted == before[0]:
        return _fallen_back(model, "torch.compile compiled nothing")
    found = Compiled(
        forward=compiled,
        took=True,
        graphs=counted - before[0],
        breaks=broken - before[1],
        first_seconds=first,
        step_seconds=step,
        eager_seconds=_eager_seconds(warm_up, model) if alone else None,
        counted=counted,
    )
    _say(found)
    return found


def _say(found: Compiled) -> None:
    eager = "eager: not timed" if found.eager_seconds is None else f"eager: {1e3 * found.eager_seconds:.1f} ms"
    log.info(
        "torch.compile worked: %d graphs; the first forward and backward took %.1f s, later ones %.1f ms (%s)",
        found.graphs,
        found.first_seconds,
        1e3 * found.step_seconds,
        eager,
    )
    if found.breaks:
        log.warning("torch.compile left %d graph breaks: parts of the model run eagerly", found.breaks)
    if found.eager_seconds is not None and found.step_seconds >= found.eager_seconds:
        log.warning(
            "torch.compile worked but is not faster: forward and backward take %.1f ms (%s)",
            1e3 * found.step_seconds,
            eager,
        )


def _eager_seconds(warm_up: Callable[[Forward], None], model: nn.Module) -> float | None:
    """Median seconds of the eager model; None if it does not fit in memory, since compiled code may need less."""
    try:
        warm_up(model)
        return _median_seconds(warm_up, model)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    model.zero_grad(set_to_none=True)
    free_memory()
    return None


def _fallen_back(model: nn.Module, reason: str) -> Compiled:
    warnings.warn(f"{reason}; the run continues in eager mode", RuntimeWarning, stacklevel=3)
    return Compiled(forward=model, took=False, reason=reason)


def _counts() -> tuple[int, int]:
    """Graphs compiled and graph breaks so far in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def _median_seconds(warm_up: Callable[[Forward], None], forward: Forward) -> float:
    return statistics.median(_seconds(warm_up, forward) for _ in range(TIMED))


def _seconds(warm_up: Callable[[Forward], None], forward: Forward) -> float:
    started = time.perf_counter()
    warm_up(forward)
    return time.perf_counter() - started
