"""torch.compile with evidence that it took. A compile that fails, or quietly compiles nothing, is said aloud."""

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

TIMED = 5  # forwards and backwards whose median is taken, compiled and eager
Forward = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """How to call the model, and what is known about its compilation.

    ``graphs`` and ``breaks`` are dynamo's counts. The pattern that tells that code was compiled: ``first_seconds``, the
    first forward and backward, which compiles, is long; ``step_seconds``, the median of those after it, is shorter than
    ``eager_seconds``, the same of the eager model (None: that did not fit in memory, or was not tried). ``took`` is
    False where the eager model is used.
    """

    forward: Forward
    took: bool
    reason: str = ""  # why it did not take
    graphs: int = 0
    breaks: int = 0
    first_seconds: float = 0.0
    step_seconds: float = 0.0
    eager_seconds: float | None = None
    counted: int = 0  # dynamo's count of graphs once the start was over

    def started(self) -> Self:
        """The start is over: what is compiled from here on is compiled in the middle of the run."""
        return replace(self, counted=_counts()[0]) if self.took else self

    @property
    def recompilations(self) -> int:
        """Graphs compiled since the start: each one stopped the run, and made its steps incomparable for a while."""
        return _counts()[0] - self.counted if self.took else 0

    def say_recompilations(self) -> None:
        """Warn at the end of a run if there were any."""
        if self.recompilations:
            log.warning(
                "torch.compile compiled %d more graphs in the middle of the run: some of its steps' times hold that",
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
    """Compile a model's forward (and so its backward) and run it a few times to see that it did.

    The module itself stays as it is, so checkpoints, evaluation and the trainer see no wrapper.

    Args:
        model: the module as ranks train it.
        warm_up: does one forward and backward with the callable it is given, and waits for the device.
        alone: no other rank takes part in the warm-up. If some do, they would wait for ever for one that goes on
            without them; so a failure is raised, and the eager model, which may not fit on one of them, is not timed.

    Raises:
        RuntimeError: out of memory; or the compiler failed and this rank is not alone. Else that is a warning.

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
        step = _median_seconds(warm_up, compiled)
    except RuntimeError as error:  # dynamo's own exceptions are of this kind
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
    eager = "eager is not timed" if found.eager_seconds is None else f"{1e3 * found.eager_seconds:.1f} ms eager"
    log.info(
        "torch.compile took: %d graphs; forward and backward %.1f s at first, then %.1f ms (%s)",
        found.graphs,
        found.first_seconds,
        1e3 * found.step_seconds,
        eager,
    )
    if found.breaks:
        log.warning("torch.compile left %d graph breaks: parts of the model run eagerly", found.breaks)
    if found.eager_seconds is not None and found.step_seconds >= found.eager_seconds:
        log.warning("torch.compile took but gains nothing: %.1f ms (%s)", 1e3 * found.step_seconds, eager)


def _eager_seconds(warm_up: Callable[[Forward], None], model: nn.Module) -> float | None:
    """None where the eager model does not fit: compiled code may need less."""
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
    warnings.warn(f"{reason}; the run goes on without it", RuntimeWarning, stacklevel=3)
    return Compiled(forward=model, took=False, reason=reason)


def _counts() -> tuple[int, int]:
    """Graphs compiled and graph breaks met so far in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def _median_seconds(warm_up: Callable[[Forward], None], forward: Forward) -> float:
    return statistics.median(_seconds(warm_up, forward) for _ in range(TIMED))


def _seconds(warm_up: Callable[[Forward], None], forward: Forward) -> float:
    started = time.perf_counter()
    warm_up(forward)
    return time.perf_counter() - started
