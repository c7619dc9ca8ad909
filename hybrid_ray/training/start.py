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
from hybrid_ray.data import Dataset
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.run_result import Replay
from hybrid_ray.training.costs import Accounts
from hybrid_ray.training.distributed import any_rank, world_size
from hybrid_ray.training.hardware.out_of_memory import free_memory, is_out_of_memory
from hybrid_ray.training.setup import Bench
from hybrid_ray.training.step_timer import Pace

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
    run: RunConfig, dataset: Dataset, device: torch.device, accounts: Accounts, *, replay: Replay | None = None
) -> tuple[Bench, Pace]:
    """The bench in the first setting that works on every rank, and its pace, calibrated in that setting (collective).

    Ranks agree on each setting before the next is tried: the one with the least memory decides for all.

    Raises:
        TrialOutOfMemory: not even a micro-batch of 1 fits. What was held is freed.
        RuntimeError: out of memory where a rank cannot try alone: a sharded model, calibration of several workers.
    """
    with accounts.other("setup"):
        # The first optimizer of a process imports this. Left to do so, it is held in a circle by the import's frames,
        # and with it what the rehearsal allocates.
        import torch._dynamo  # noqa: F401

        bench = Bench(run, dataset, device)
    for setting in settings(run):
        outcome = _pace_in(setting, bench, accounts, replay)
        if isinstance(outcome, Pace):
            _say_batch(bench)
            return bench, outcome
        _give_up(setting, bench, outcome)
    raise TrialOutOfMemory(
        f"no setting works ({'; '.join(bench.fallbacks)}): there is no smaller train.micro_batch_size; give the run a "
        "larger device, or choose a smaller model.preset"
    )


def _pace_in(setting: Setting, bench: Bench, accounts: Accounts, replay: Replay | None) -> Pace | str:
    """The pace, calibrated in this setting; or what went wrong on some rank."""
    bench.micro_batch_size = setting.micro_batch_size
    apart = not bench.sharded  # each rank can try without the others
    if setting.compiled:
        with accounts.other("compile"):
            problem = _tried(lambda: _compile(bench), catch=apart)
        if problem:
            return problem
    with accounts.other("setup"):
        problem = _tried(lambda: _rehearse(bench, replay), catch=apart)
        _collect(bench.device)
    if problem:
        return problem
    with accounts.other("calibration"):
        pace = Pace(bench)
        problem = _tried(lambda: _calibrate(pace, accounts), catch=world_size() == 1)
        _collect(bench.device)
    if problem:
        return problem
    bench.compiled = bench.compiled.started()  # an optimizer's step may have been compiled too
    return pace


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


def _give_up(setting: Setting, bench: Bench, problem: str) -> None:
    """Free what the setting held. Eager from now on."""
    bench.fallbacks.append(f"{setting}: {problem}")
    log.warning("the run cannot train as asked (%s: %s); it goes on with the next smaller setting", setting, problem)
    bench.use_eager()
    bench.model.zero_grad(set_to_none=True)
    free_memory()


def _compile(bench: Bench) -> str | None:
    bench.compile()
    return None if bench.compiled.took else bench.compiled.reason


def _rehearse(bench: Bench, replay: Replay | None) -> None:
    """Hold at one time what a real step holds: weights, gradients, the optimizer's and the predictor's state, and what
    one micro-batch leaves for the backward.

    Not rehearsed: the predictor's own temporaries when it closes a window or predicts, clipping, an evaluation. Where
    one of these is the most, it is found in the run, and ends it.

    Several workers with the whole model each (DDP) do this without a word to each other, so that one that runs out of
    memory leaves no other waiting.
    """
    training, batch = bench.training(bench.run, replay=replay), bench.to_device(bench.sampler().next())
    bench.gradient(bench.compiled.forward, batch)
    training.optimizer.step()
    if bench.accumulate == 1:  # else gradients of earlier micro-batches are there when the next one runs
        bench.model.zero_grad(set_to_none=True)
    bench.gradient(bench.compiled.forward, batch)
    bench.model.zero_grad(set_to_none=True)


def _calibrate(pace: Pace, accounts: Accounts) -> None:
    accounts.step_cost = pace.calibrate()


def _say_batch(bench: Bench) -> None:
    batch, micro, workers = bench.run.train.batch_size, bench.micro_batch_size, world_size()
    assert bench.accumulate * micro * workers == batch, "the effective batch is never changed"
    log.info(
        "effective batch %d = %d x %d x %d worker%s (micro-batch, accumulated, ranks)",
        batch, micro, bench.accumulate, workers, "s" if workers > 1 else "",
    )  # fmt: skip
