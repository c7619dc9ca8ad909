"""One trial of the search: a training run whose evaluations are scored and reported to Ray Tune.

`trial` runs on one device in Tune's process; `trial_with_workers` uses several workers, through a TorchTrainer inside
the trial. Both end with one report of how the run ended. Neither raises for divergence or lack of memory, because Tune
would only repeat the failure.
"""

import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.evaluation.scoring import TrialScorer, failed_scores
from hybrid_ray.ray_tune.space import settings
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, TrialEnd
from hybrid_ray.training.hardware.node import check_node
from hybrid_ray.training.reporter import NullReporter, Reporters
from hybrid_ray.training.telemetry.heartbeat import FOLDER, Heartbeat

__all__ = ["TrialReporter", "TrialSpec", "in_one_line", "run_name", "trial", "trial_with_workers"]

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """What all trials of a study share. Sent to them once, through Ray's object store."""

    job: JobConfig
    scorer: TrialScorer
    trials: Path  # contains the run directories of the trials
    storage: Path  # folder for the state of Ray Train
    nodes: Path | None = None  # the driver's file on the nodes of a cluster (`training.hardware.node`)

    def run(self, params: Mapping[str, Any]) -> RunConfig:
        """The run of a trial. It has the baseline's seed and data order, so that only the method differs."""
        return self.job.run(hybrid=settings(self.job, params))

    def directory(self, number: int) -> Path:
        return self.trials / f"{number:04d}"


class TrialReporter(NullReporter):
    """Scores every evaluation against the baseline and reports it at its scheduled step.

    A run is evaluated at the end of a cycle, so some steps after the scheduled one and later with longer cycles. The
    scores compare with the baseline at the step that the run has really done (``steps``). Schedulers and Optuna compare
    trials with each other by ``step``, so that is the scheduled step, the same for all trials.

    The last evaluation is part of the final report instead, so that no scheduler stops a finished trial.

    Args:
        send: ``tune.report``, or the function that a worker reports with.
        scorer: compares with baseline and frontier and computes the objective.
        schedule: nominal steps at which evaluations are scheduled; the last is the end of the run.
    """

    def __init__(self, send: Send, *, scorer: TrialScorer, schedule: Sequence[int]) -> None:
        self._scorer, self._schedule, self._send = scorer, schedule, send
        self._evaluations: list[Evaluation] = []

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        """Returns "diverged" if the loss was too far above the baseline's at two evaluations in a row."""
        self._evaluations.append(evaluation)
        if self._scorer.diverged_at(self._evaluations):
            return "diverged"
        if evaluation.step < self._schedule[-1]:
            scheduled = max(step for step in self._schedule if step <= evaluation.step)
            scores = self._scorer.at(evaluation, step_seconds)
            self._send({**scores, "step": scheduled, **phase_counts(replay)})
        return None


def trial(config: dict[str, Any], *, spec: TrialSpec) -> None:
    """A Tune function for one device. ``config``: the trial's number and its params."""
    import ray
    from ray import tune

    from hybrid_ray.training.loop import train

    check_node(spec.nodes, spec.job.run())
    directory = spec.directory(config["number"])
    reporter = TrialReporter(tune.report, scorer=spec.scorer, schedule=spec.job.train.evaluation_steps)
    node, name = ray.get_runtime_context().get_node_id(), f"trial {config['number']}"

    def execute() -> RunResult:
        run = spec.run(config["params"])
        with Heartbeat(spec.storage / FOLDER, run, name=name, node=node) as heartbeat:
            return train(run, reporter=Reporters(reporter, heartbeat), directory=directory)

    tune.report({**attempt(execute, spec.scorer, directory), "done": True})


def trial_with_workers(config: dict[str, Any], *, spec: TrialSpec) -> None:
    """A Tune function that holds a TorchTrainer, whose workers train and report through it.

    `fit_with_workers` restarts failed workers from the last checkpoint; if it gives up, the trial fails. If this
    process dies, Tune restarts it, and the run continues because it has the same name.
    """
    from ray import tune
    from ray.train import TrainingFailedError
    from ray.tune.integration.ray_train import TuneReportCallback

    from hybrid_ray.training.ray_worker import fit_with_workers

    check_node(spec.nodes, None)
    directory = spec.directory(config["number"])
    callback = TuneReportCallback()  # type: ignore[no-untyped-call]
    outcome = attempt(
        lambda: fit_with_workers(
            spec.run(config["params"]),
            directory=directory,
            storage=spec.storage,
            name=run_name(tune.get_context().get_trial_id()),
            resources=spec.job.resources,
            max_failures=spec.job.search.max_failures,
            nodes=spec.nodes,
            callbacks=[callback],
            reporter_factory=partial(TrialReporter, scorer=spec.scorer, schedule=spec.job.train.evaluation_steps),
        ),
        spec.scorer,
        directory,
        gave_up=TrainingFailedError,
    )
    _wait_until_heard(callback)
    tune.report({**outcome, "done": True})


def run_name(trial_id: str) -> str:
    """The name of a trial's TorchTrainer."""
    return f"train-{trial_id}"


def phase_counts(replay: Replay) -> dict[str, int]:
    """Nominal steps by phase, under the reported names (``phase_predict`` and so on)."""
    return {f"phase_{name}": count for name, count in replay.phase_steps.items()}


def attempt(
    execute: Callable[[], RunResult],
    scorer: TrialScorer,
    directory: Path,
    *,
    gave_up: type[Exception] | tuple[()] = (),
) -> dict[str, Any]:
    """Execute a run and return its final report. An exception is written to ``error.txt`` and raised again.

    Out of memory is not raised: the memory is freed and the trial fails once, as "oom". Nor is ``gave_up``, the
    exception of an executor that has already retried.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "error.txt").unlink(missing_ok=True)
    end = TrialEnd.FAILED
    try:
        result = execute()
    except TrialOutOfMemory as error:
        said, end = f"oom: {error}", TrialEnd.OUT_OF_MEMORY
    except gave_up as error:
        said = in_one_line(error)
        (directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
    except Exception:
        (directory / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    else:
        try:
            if result.status in ("finished", "diverged"):
                return scorer.final(result) | phase_counts(result.replay)
            said = result.error or f"the run ended as {result.status!r}"
        except ValueError as error:  # not comparable with the baseline; a retry would not help
            said = str(error)
    from hybrid_ray.training.hardware.out_of_memory import free_memory  # torch, which nothing else here needs

    free_memory()  # this process is reused for the next trial
    return failed_scores(said, end)


def in_one_line(error: Exception) -> str:
    """An error as one line for a row. Ray's errors hold whole coloured tracebacks of other processes."""
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    return f"{type(error).__name__}: {said if len(said) <= 600 else said[:300] + ' ... ' + said[-300:]}"


def _wait_until_heard(callback: Any) -> None:
    """Wait until Tune has received the workers' reports.

    Ray passes them through the same queue of length one that this process uses: a report from here would block forever
    while a worker's report is waiting (ray 2.60, _TrainSession._get_result_from_queues).
    """
    while not callback._training_actor_item_queue.empty():
        time.sleep(0.1)
    time.sleep(0.5)
