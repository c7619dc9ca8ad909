"""Simulate a whole study in seconds: the real searcher, scheduler, scorer and confirmation, with runs from a table.

Only training is replaced. Trials are real runs of a table (``run_table.py``); their reports come from an event queue
ordered by a fake clock, as they would come from ``concurrency`` parallel workers. A trial that the scheduler stops
frees its worker at once and costs the time it has used. The clock counts plain steps, the unit of every time in this
package.

The part of Tune that passes reports to scheduler and searcher is reimplemented here, in the order of ray 2.60
(TuneController._process_trial_result). The seconds to start a process and to evaluate are left out; they are no
training time either.
"""

import heapq
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from run_table import RunTable

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.confirm import confirm
from hybrid_ray.evaluation.equal_settings import TrainedSettings
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.scoring import TrialScorer, failed_scores
from hybrid_ray.ray_tune.optuna_storage import queue_settings
from hybrid_ray.ray_tune.sampler import build_sampler
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.searcher import OptunaSearcher
from hybrid_ray.ray_tune.space import SearchSpace, load_space, settings
from hybrid_ray.ray_tune.trial import TrialReporter
from hybrid_ray.run_result import Evaluation, RunResult, TrialEnd
from hybrid_ray.study.candidates import best_candidates

if TYPE_CHECKING:
    import optuna

__all__ = ["Faults", "SimulatedStudy", "simulate"]

Fault = Literal["diverged", "died", "out_of_memory"]
Report = tuple[float, dict[str, Any] | None]
"""Time in plain steps since the trial began, and the report that Tune receives; None: the trial's process died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """The shares of trials that fail, by kind of fault, each at a random moment of its run.

    ``diverged``: the loss is not finite. ``died``: the process dies, and again at every retry of Tune.
    ``out_of_memory``: at the first step.
    """

    diverged: float = 0.0
    died: float = 0.0
    out_of_memory: float = 0.0
    seed: int = 0

    def of(self, number: int) -> tuple[Fault | None, float]:
        """The fault of a trial (None: no fault) and the share of its run at which it happens; drawn per trial."""
        draw = random.Random(f"{self.seed} {number}")
        chance, share = draw.random(), draw.random()
        if chance < self.diverged:
            return "diverged", share
        if chance < self.diverged + self.died:
            return "died", share
        if chance < self.diverged + self.died + self.out_of_memory:
            return "out_of_memory", 0.0
        return None, 1.0


_NO_FAULTS = Faults()


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedStudy:
    """The outcome of a simulated study.

    ``rows`` are those of ``trials.jsonl``, in the order in which the trials ended; their ``started`` and ``ended`` are
    in plain steps since the search began.
    """

    job: JobConfig
    rows: Sequence[Mapping[str, Any]]
    optuna_study: "optuna.Study"
    gave_up: bool
    confirmation: Mapping[str, Any] | None

    @property
    def makespan(self) -> float:
        """Plain steps from the first trial's start to the last one's end."""
        return max((row["ended"] for row in self.rows), default=0.0)

    @property
    def cost(self) -> float:
        """Training time of all trials, in plain steps."""
        return self.cost_until(math.inf)

    def cost_until(self, moment: float) -> float:
        """Training time of all trials up to a moment, including the part of trials that were still running."""
        spent = (max(0.0, min(row["ended"], moment) - row["started"]) for row in self.rows)
        return float(sum(spent))


def simulate(
    job: JobConfig,
    table: RunTable,
    *,
    space: SearchSpace | None = None,
    faults: Faults = _NO_FAULTS,
    concurrency: int = 1,
) -> SimulatedStudy:
    """Search and confirm as ``job`` says, with no training.

    Args:
        job: the table's job; only search, objective and confirmation may differ.
        space: replaces the job's search space, to try other presets.
        faults: failures in addition to those of the table's runs.
        concurrency: trials that run in parallel.

    Raises:
        ConfigError: the table belongs to another job.
    """
    table.check(job)
    results = [table.result(run) for run in frontier_runs(job).values()]
    search = _Search(
        job,
        table,
        space or load_space(job),
        TrialScorer.from_results(results, job.objective),
        faults,
    )
    search.run(concurrency)
    candidates = best_candidates(search.rows, job)
    confirmation = None
    if candidates:
        confirmation = confirm(
            job,
            candidates,
            execute=table.execute,
            directory=Path("nowhere"),  # nothing is written, and nothing kept is found
            frontier=Frontier.from_results(results, "test"),
        )
    return SimulatedStudy(
        job=job,
        rows=search.rows,
        optuna_study=search.optuna_study,
        gave_up=search.searcher.gave_up,
        confirmation=confirmation,
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Trial:
    """The attributes that schedulers read, and the reports still to come."""

    trial_id: str
    started: float
    reports: Iterator[Report]


_CONTROLLER = SimpleNamespace(get_live_trials=list)
"""Schedulers ask Tune's controller for waiting trials. There are none here: a free worker asks for a new one."""


class _Search:
    """The search stage; also the listener of its own searcher."""

    def __init__(
        self, job: JobConfig, table: RunTable, space: SearchSpace, scorer: TrialScorer, faults: Faults
    ) -> None:
        self._job, self._table, self._scorer, self._faults = job, table, scorer, faults
        self._now = 0.0
        self.rows: list[Mapping[str, Any]] = []
        self.optuna_study = _open_study(job, space)
        self.searcher = OptunaSearcher(
            self.optuna_study,
            lambda trial: space.ask(trial, job),
            mode=job.objective.mode,
            listener=self,
            stop_after_failures=job.search.stop_after_failures,
            clock=lambda: self._now,
            trained=TrainedSettings(lambda params: settings(job, params)),
        )
        self._scheduler: Any = build_scheduler(job, space)  # its trials and controller are stand-ins here
        self._queue: list[tuple[float, int, _Trial, dict[str, Any] | None]] = []
        self._order = count()

    def run(self, concurrency: int) -> None:
        """Start a trial on every free worker and process the next report, until no trial runs and none is left."""
        waiting = iter(range(self._job.search.trials))
        while True:
            for index in islice(waiting, concurrency - len(self._queue)):
                self._start(f"trial-{index}")
            if not self._queue:
                return
            self._now, _, trial, report = heapq.heappop(self._queue)
            self._hear(trial, report)

    def _start(self, trial_id: str) -> None:
        asked = self.searcher.suggest(trial_id)
        if asked == OptunaSearcher.FINISHED:
            return
        trial = _Trial(trial_id, self._now, iter(self._reports(asked["number"], asked["params"])))
        self._scheduler.on_trial_add(_CONTROLLER, trial)
        self._wait_for_next(trial)

    def _wait_for_next(self, trial: _Trial) -> None:
        """Queue the trial's next report; every running trial has exactly one in the queue."""
        after, report = next(trial.reports)
        heapq.heappush(self._queue, (trial.started + after, next(self._order), trial, report))

    def _hear(self, trial: _Trial, report: dict[str, Any] | None) -> None:
        """Process a report as Tune does: the scheduler decides; the searcher gets those that do not end a trial."""
        if report is None:
            self._scheduler.on_trial_error(_CONTROLLER, trial)
            self.searcher.on_trial_complete(trial.trial_id, error=True)
        elif not report.get("done") and self._scheduler.on_trial_result(_CONTROLLER, trial, report) != "STOP":
            self.searcher.on_trial_result(trial.trial_id, report)
            self._wait_for_next(trial)
        else:
            self._scheduler.on_trial_complete(_CONTROLLER, trial, report)
            self.searcher.on_trial_complete(trial.trial_id, report)

    def _reports(self, number: int, params: Mapping[str, Any]) -> list[Report]:
        """All reports of a trial that nobody stops."""
        result = self._table.result(self._job.run(hybrid=settings(self._job, params)))
        fault, share = self._faults.of(number)
        if fault is None:
            return _played(result, self._scorer, self._job.train.evaluation_steps)
        if fault == "out_of_memory":
            return [(0.0, {**failed_scores("oom: simulated", TrialEnd.OUT_OF_MEMORY), "done": True})]
        broken = _broken(result, share)
        reports = _played(broken, self._scorer, self._job.train.evaluation_steps)
        if fault == "diverged" or reports[-1][0] < broken.time:
            return reports
        attempts = 1 + self._job.search.max_failures
        heard = [
            (attempt * broken.time + after, report) for attempt in range(attempts) for after, report in reports[:-1]
        ]
        return [*heard, (attempts * broken.time, None)]

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None:
        return None

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        return None

    def ended(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def gave_up(self, numbers: Sequence[int]) -> None:
        return None


def _open_study(job: JobConfig, space: SearchSpace) -> "optuna.Study":
    """A study in memory, otherwise as ``journal.open_study`` makes it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=["maximize", "minimize"] if job.objective.mode == "pareto" else ["maximize"],
        sampler=build_sampler(job, seed=job.search.seed),
    )
    queue_settings(study, dict(islice(space.presets.items(), job.search.trials)))
    return study


def _played(result: RunResult, scorer: TrialScorer, schedule: Sequence[int]) -> list[Report]:
    """The reports of a run as a trial sends them: one per evaluation, then the end."""
    reports: list[Report] = []
    sent: list[dict[str, Any]] = []
    reporter = TrialReporter(sent.append, scorer=scorer, schedule=schedule)
    for index, point in enumerate(result.curve):
        done = replace(result.replay, phases=result.replay.phases[: point.step])
        if reporter.evaluation(point, result.step_seconds, done) is not None:
            result = _diverged(result, point.step, point.train_seconds, curve=result.curve[: index + 1], error=None)
            break
        reports.extend((point.time, report) for report in sent)
        sent.clear()
    return [*reports, (result.time, {**scorer.final(result), "done": True})]


def _broken(result: RunResult, share: float) -> RunResult:
    """The run, with a loss that is not finite after this share of it."""
    step, seconds = max(1, round(share * result.steps)), share * result.train_seconds
    return _diverged(
        result,
        step,
        seconds,
        curve=tuple(point for point in result.curve if point.train_seconds < seconds),
        error=f"simulated: the loss is nan at nominal step {step}",
    )


def _diverged(
    result: RunResult, step: int, seconds: float, *, curve: tuple[Evaluation, ...], error: str | None
) -> RunResult:
    """The result that the training loop would give if the run had ended here as diverged."""
    return replace(
        result,
        status="diverged",
        replay=replace(result.replay, phases=result.replay.phases[:step]),
        phase_seconds={name: spent * seconds / result.train_seconds for name, spent in result.phase_seconds.items()},
        curve=curve,
        heldout={},
        error=error,
    )
