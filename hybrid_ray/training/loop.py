"""The training loop of every arm: baseline, hybrid and controls differ only in their configuration."""

import time
from pathlib import Path

import torch

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, Diverged, StoreError, TrialOutOfMemory
from hybrid_ray.method.ranks import any_rank, world_size
from hybrid_ray.run_result import Replay, RunResult, Status, StepRecord
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.tasks import load_task
from hybrid_ray.training.costs import RunCosts
from hybrid_ray.training.hardware.out_of_memory import free_memory, is_out_of_memory
from hybrid_ray.training.hardware.placement import check_placement, choose_device
from hybrid_ray.training.interruption import StopRequest
from hybrid_ray.training.reporter import NullReporter, Reporter
from hybrid_ray.training.run import TrainingRun
from hybrid_ray.training.setup import synchronize
from hybrid_ray.training.start import start
from hybrid_ray.training.telemetry.monitor import Monitor, watch

__all__ = ["train"]


def train(run: RunConfig, *, reporter: Reporter | None = None, directory: Path | None = None) -> RunResult:
    """Train one model with one seed, and measure its time, loss and memory.

    With several workers, every rank calls this inside a process group, and every rank gets the times of rank 0.

    Args:
        run: everything that determines the final weights.
        reporter: receives steps and evaluations, and may end the run.
        directory: the run directory. If it has checkpoints, the run resumes from the newest complete one.

    Raises:
        ConfigError: the device does not exist, the number of workers is wrong, or the task or its data can't be loaded.
        TrialOutOfMemory: the run does not fit in memory. Its memory is freed.
        CheckpointError: the directory's checkpoints can't be used, or one could not be written.
    """
    try:
        return _train(run, reporter or NullReporter(), directory)
    except TrialOutOfMemory as error:
        message = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"{str(error).partition(chr(10))[0]}: lower train.micro_batch_size, or give the run a larger device"
    # Outside the except block, the traceback no longer keeps the model alive.
    free_memory()
    raise TrialOutOfMemory(message)


def _train(run: RunConfig, reporter: Reporter, directory: Path | None) -> RunResult:
    costs = RunCosts()
    with StopRequest() as stop:
        # Choose the device and prepare the data.
        with costs.other("setup"):
            device = _place(run)
            replay = _replay(run)
            task = load_task(run)
            _ = task.fingerprint  # prepares its data

        # Build the model on the device with the fastest setting that works, and time some of its steps.
        setup = start(run, task, device, costs, replay=replay)
        check_placement(setup.module, device)

        # Start from the seed, or resume from a checkpoint.
        with costs.other("setup"):
            training_run = TrainingRun(setup, setup.fresh(run, replay=replay), costs, reporter, directory)

        with watch(device) as monitor:
            try:
                status, error = _nominal_steps(training_run, stop, monitor)
            finally:
                training_run.flush()
        return training_run.close(status, error, monitor)


def _nominal_steps(training_run: TrainingRun, stop: StopRequest, monitor: Monitor) -> tuple[Status, str | None]:
    """Train to the end of the run. Returns the status and, unless it finished, the reason."""
    setup, training, costs = training_run.setup, training_run.training, training_run.costs
    closure = setup.next_loss(training, costs.read)
    try:
        while not training_run.ended:
            # One nominal step, real or predicted. Nothing else in this loop is training time.
            learning_rate = training.learning_rate
            synchronize(setup.device)
            started = time.perf_counter()
            result = training.trainer.step(closure)
            synchronize(setup.device)
            seconds = time.perf_counter() - started

            costs.count(training_run.step, result, seconds)
            monitor.spent(str(result.phase), started, started + seconds)
            training_run.report_step(
                StepRecord(
                    step=training_run.step,
                    phase=str(result.phase),
                    predicted=result.predicted,
                    loss=result.loss,
                    confidence=result.confidence,
                    learning_rate=learning_rate,
                    grad_norm=result.grad_norm,
                    seconds=seconds,
                    level=str(result.level),
                    event=result.event,
                )
            )

            # When due, and only after Correct: evaluate, checkpoint, report, and check on all ranks whether to go on.
            if training_run.evaluation_due():
                status = training_run.evaluate_and_report()
                if status is not None:
                    return status, None
            elif training_run.checkpoint_due():
                training_run.checkpoint()

            # On a signal, save a checkpoint and stop. All ranks must agree; with several ranks, check only after a real
            # step, because predicted steps do not communicate.
            alone = world_size() == 1
            if (alone or not result.predicted) and not training_run.ended and any_rank(stop.asked):
                training_run.checkpoint()
                return "stopped", "asked to stop by a signal"
    except Diverged as error:
        return "diverged", str(error)
    return "finished", None


def _place(run: RunConfig) -> torch.device:
    """Set the number of threads and return the run's device. Raises ConfigError if workers or device are missing."""
    if world_size() != run.workers:
        raise ConfigError(
            f"the run has workers: {run.workers} but {world_size()} rank(s) are here: start it through "
            "hybrid_ray.training.ray_worker.fit_with_workers, or set workers to the number of ranks"
        )
    torch.set_num_threads(run.train.threads)
    return choose_device(run)


def _replay(run: RunConfig) -> Replay | None:
    """The decisions that a control repeats. Raises ConfigError if the result that recorded them can't be read."""
    if run.replay is None:
        return None
    try:
        return RunResult.from_dict(read_json(Path(run.replay))).replay
    except (StoreError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"replay is {run.replay!r} but must be the result.json of a hybrid run ({type(error).__name__}: {error})"
        ) from error
