"""Starts a run with fallbacks: compiled if asked, then eager, then smaller micro-batches, all with one effective batch.

    compiled -> eager -> eager, micro-batch halved -> ... -> micro-batch 1 -> TrialOutOfMemory

Each setting is tried before any step counts. Smaller micro-batches split the same batch (`SharedStream`) and give the
same gradient up to rounding, so a fallback changes only the speed of a run. That is why its result records the
setting, and a trial is not compared with a baseline trained in another setting.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.method.ranks import any_rank, world_size
from hybrid_ray.run_result import Replay
from hybrid_ray.tasks import Task
from hybrid_ray.training.costs import RunCosts
from hybrid_ray.training.hardware.out_of_memory import free_memory, is_out_of_memory
from hybrid_ray.training.setup import TrainSetup
from hybrid_ray.training.step_costs import time_steps

__all__ = ["Setting", "settings", "start"]

log = logging.getLogger("hybrid_ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to train a run: compiled or eager, and the micro-batch size per worker."""

    compiled: bool
    micro_batch_size: int

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'}, micro-batch {self.micro_batch_size}"


def settings(run: RunConfig) -> Iterator[Setting]:
    """The settings to try, in order. Each micro-batch size divides a worker's share of the batch."""
    micro, share = run.micro_batch_size, run.train.batch_size // run.workers
    if run.train.compile:
        yield Setting(compiled=True, micro_batch_size=micro)
    yield Setting(compiled=False, micro_batch_size=micro)
    while micro > 1:
        micro = next(size for size in range(micro // 2, 0, -1) if share % size == 0)
        yield Setting(compiled=False, micro_batch_size=micro)


def start(
    run: RunConfig, task: Task, device: torch.device, costs: RunCosts, *, replay: Replay | None = None
) -> TrainSetup:
    """The setup in the first setting that works on every rank (collective). ``costs`` gets what its steps cost.

    All ranks try a setting before any tries the next, so the rank with the least memory decides.

    Raises:
        TrialOutOfMemory: not even a micro-batch of 1 fits. All memory is freed.
        RuntimeError: out of memory where a rank cannot try alone: a sharded model, or calibration with several workers.
    """
    with costs.other("setup"):
        # The first optimizer of a process imports this. Import it here; otherwise the import's frames form a reference
        # cycle that keeps that optimizer, and the memory of the rehearsal, alive.
        import torch._dynamo  # noqa: F401

        setup = TrainSetup(run, task, device)
    for setting in settings(run):
        problem = _problem_with(setting, setup, costs, replay)
        if problem is None:
            _say_batch(setup)
            return setup
        _give_up(setting, setup, problem)
    raise TrialOutOfMemory(
        f"the run does not fit in memory ({'; '.join(setup.fallbacks)}): train.micro_batch_size cannot be smaller; use "
        "a device with more memory, or a smaller model.preset"
    )


def _problem_with(setting: Setting, setup: TrainSetup, costs: RunCosts, replay: Replay | None) -> str | None:
    """Switch the setup to this setting and time its steps. Returns the problem that some rank had, or None."""
    setup.micro_batch_size = setting.micro_batch_size
    apart = not setup.sharded  # whether each rank can try without the others
    if setting.compiled:
        with costs.other("compile"):
            problem = _tried(lambda: _compile(setup), catch=apart)
        if problem:
            return problem
    with costs.other("setup"):
        problem = _tried(lambda: _rehearse(setup, replay), catch=apart)
        _collect(setup.device)
    if problem:
        return problem
    with costs.other("calibration"):
        problem = _tried(lambda: _calibrate(setup, costs), catch=world_size() == 1)
        _collect(setup.device)
    if problem:
        return problem
    setup.compiled = setup.compiled.started()  # after calibration, which may compile an optimizer's step
    return None


def _collect(device: torch.device) -> None:
    """Free the memory of a tried setting before the next phase.

    On a CPU the last reference frees it. On a GPU the allocator caches blocks of the old sizes, and compiled code may
    keep an optimizer alive in a reference cycle.
    """
    if device.type == "cuda":
        free_memory()


def _tried(work: Callable[[], str | None], *, catch: bool) -> str | None:
    """Run ``work`` on all ranks; the problem that this rank or another had, or None (collective).

    Args:
        work: returns a problem, or None.
        catch: treat out of memory as a problem. False lets it end the run, where other ranks would wait for this one
            inside a collective operation.
    """
    problem = None
    try:
        problem = work()
    except (RuntimeError, MemoryError) as error:
        if not (catch and is_out_of_memory(error)):
            raise
        problem = f"out of memory ({str(error).partition(chr(10))[0]})"
    return (problem or "it failed on another rank") if any_rank(problem is not None) else None


def _give_up(setting: Setting, setup: TrainSetup, problem: str) -> None:
    """Record why a setting failed, free its memory and switch to eager."""
    setup.fallbacks.append(f"{setting}: {problem}")
    log.warning("the run cannot train with the setting %s (%s); trying the next smaller one", setting, problem)
    setup.use_eager()
    setup.model.zero_grad(set_to_none=True)
    free_memory()


def _compile(setup: TrainSetup) -> str | None:
    setup.compile()
    return None if setup.compiled.took else setup.compiled.reason


def _rehearse(setup: TrainSetup, replay: Replay | None) -> None:
    """Allocate what a real step needs at once: weights, gradients, optimizer state, predictor state, activations.

    Not rehearsed: temporaries of the predictor, clipping, evaluation. If one of these sets the peak and does not fit,
    the run ends there.

    With DDP the workers do this without communication, so that one that runs out of memory leaves no other waiting.
    """
    training, batch = setup.training(setup.run, replay=replay), setup.to_device(setup.sampler().next())
    setup.gradient(setup.compiled.forward, batch)
    training.optimizer.step()
    if setup.accumulate == 1:  # otherwise gradients of earlier micro-batches exist while the next one runs
        setup.model.zero_grad(set_to_none=True)
    setup.gradient(setup.compiled.forward, batch)
    setup.model.zero_grad(set_to_none=True)


def _calibrate(setup: TrainSetup, costs: RunCosts) -> None:
    costs.of_steps = time_steps(setup)


def _say_batch(setup: TrainSetup) -> None:
    batch, micro, workers = setup.run.train.batch_size, setup.micro_batch_size, world_size()
    assert setup.accumulate * micro * workers == batch, "the effective batch is never changed"
    log.info(
        "effective batch %d = %d x %d x %d worker%s (micro-batch, accumulated, ranks)",
        batch, micro, setup.accumulate, workers, "s" if workers > 1 else "",
    )  # fmt: skip
