"""How a run starts: compiled if asked, else eager, else in smaller micro-batches, always with the same effective batch.

    compiled -> eager -> eager, micro-batch halved -> ... -> micro-batch 1 -> TrialOutOfMemory

Each setting is tried before any step counts. Smaller micro-batches of one batch hold the same sequences in the same
order (`SharedStream`) and add up to the same gradient but for rounding, so the run that comes out is the run that was
asked for; only its speed differs. That is why its result names the setting, and a trial is not measured against a
baseline that trained in another.
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
from hybrid_ray.training.step_timer import StepTimer

__all__ = ["Setting", "settings", "start"]

log = logging.getLogger("hybrid_ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to train the same run."""

    compiled: bool
    micro_batch_size: int

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'}, micro-batch {self.micro_batch_size}"


def settings(run: RunConfig) -> Iterator[Setting]:
    """What is tried, in order. Micro-batches divide a worker's share of the batch, so that it stays whole."""
    micro, share = run.micro_batch_size, run.train.batch_size // run.workers
    if run.train.compile:
        yield Setting(compiled=True, micro_batch_size=micro)
    yield Setting(compiled=False, micro_batch_size=micro)
    while micro > 1:
        micro = next(size for size in range(micro // 2, 0, -1) if share % size == 0)
        yield Setting(compiled=False, micro_batch_size=micro)


def start(
    run: RunConfig, task: Task, device: torch.device, costs: RunCosts, *, replay: Replay | None = None
) -> tuple[TrainSetup, StepTimer]:
    """The setup in the first setting that works on every rank, and its timer, calibrated in that setting (collective).

    Ranks agree on each setting before the next is tried: the one with the least memory decides for all.

    Raises:
        TrialOutOfMemory: not even a micro-batch of 1 fits. What was held is freed.
        RuntimeError: out of memory where a rank cannot try alone: a sharded model, calibration of several workers.
    """
    with costs.other("setup"):
        # The first optimizer of a process imports this. Left to do so, it is held in a circle by the import's frames,
        # and with it what the rehearsal allocates.
        import torch._dynamo  # noqa: F401

        setup = TrainSetup(run, task, device)
    for setting in settings(run):
        outcome = _timer_in(setting, setup, costs, replay)
        if isinstance(outcome, StepTimer):
            _say_batch(setup)
            return setup, outcome
        _give_up(setting, setup, outcome)
    raise TrialOutOfMemory(
        f"no setting works ({'; '.join(setup.fallbacks)}): there is no smaller train.micro_batch_size; give the run a "
        "larger device, or choose a smaller model.preset"
    )


def _timer_in(setting: Setting, setup: TrainSetup, costs: RunCosts, replay: Replay | None) -> StepTimer | str:
    """The timer, calibrated in this setting; or what went wrong on some rank."""
    setup.micro_batch_size = setting.micro_batch_size
    apart = not setup.sharded  # each rank can try without the others
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
        timer = StepTimer(setup)
        problem = _tried(lambda: _calibrate(timer, costs), catch=world_size() == 1)
        _collect(setup.device)
    if problem:
        return problem
    setup.compiled = setup.compiled.started()  # an optimizer's step may have been compiled too
    return timer


def _collect(device: torch.device) -> None:
    """Nothing of a setting's trial may be there beside what comes next. On a CPU the last reference frees it; a GPU's
    allocator keeps blocks that are cut to its sizes, and compiled code may refer to an optimizer in a circle.
    """
    if device.type == "cuda":
        free_memory()


def _tried(work: Callable[[], str | None], *, catch: bool) -> str | None:
    """What went wrong with the work on this rank or another; None: nothing (collective).

    Args:
        catch: out of memory is an answer. False where other ranks would wait in the middle of a collective for this
            one: then it ends the run.
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
    """Free what the setting held. Eager from now on."""
    setup.fallbacks.append(f"{setting}: {problem}")
    log.warning("the run cannot train as asked (%s: %s); it goes on with the next smaller setting", setting, problem)
    setup.use_eager()
    setup.model.zero_grad(set_to_none=True)
    free_memory()


def _compile(setup: TrainSetup) -> str | None:
    setup.compile()
    return None if setup.compiled.took else setup.compiled.reason


def _rehearse(setup: TrainSetup, replay: Replay | None) -> None:
    """Hold at one time what a real step holds: weights, gradients, the optimizer's and the predictor's state, and what
    one micro-batch leaves for the backward.

    Not rehearsed: the predictor's own temporaries when it closes a window or predicts, clipping, an evaluation. Where
    one of these is the most, it is found in the run, and ends it.

    Several workers with the whole model each (DDP) do this without a word to each other, so that one that runs out of
    memory leaves no other waiting.
    """
    training, batch = setup.training(setup.run, replay=replay), setup.to_device(setup.sampler().next())
    setup.gradient(setup.compiled.forward, batch)
    training.optimizer.step()
    if setup.accumulate == 1:  # else gradients of earlier micro-batches are there when the next one runs
        setup.model.zero_grad(set_to_none=True)
    setup.gradient(setup.compiled.forward, batch)
    setup.model.zero_grad(set_to_none=True)


def _calibrate(timer: StepTimer, costs: RunCosts) -> None:
    costs.step_cost = timer.calibrate()
    costs.optimizer_cost = timer.optimizer_cost


def _say_batch(setup: TrainSetup) -> None:
    batch, micro, workers = setup.run.train.batch_size, setup.micro_batch_size, world_size()
    assert setup.accumulate * micro * workers == batch, "the effective batch is never changed"
    log.info(
        "effective batch %d = %d x %d x %d worker%s (micro-batch, accumulated, ranks)",
        batch, micro, setup.accumulate, workers, "s" if workers > 1 else "",
    )  # fmt: skip
