"""The stages of a study in order, each over one study directory: frontier, search, confirmation, report."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hybrid_ray.errors import HybridRayError, StoreError
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.confirm import confirm, confirmation_runs
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.runner import Task, cached
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.ray_tune.cluster import Resources, ray_session, resource_concurrency
from hybrid_ray.ray_tune.nodes.follow import ClusterNodes, cluster_nodes
from hybrid_ray.ray_tune.optuna_storage import counted_trials, queue_settings, reconcile
from hybrid_ray.ray_tune.recovery.rebuild import open_whole_study, rebuild_rows
from hybrid_ray.ray_tune.runner import RayExecute
from hybrid_ray.ray_tune.space import SearchSpace
from hybrid_ray.ray_tune.trial import TrialSpec
from hybrid_ray.report.load import load_study
from hybrid_ray.report.study_page import write_report
from hybrid_ray.report.tables.trials import plain_scores
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.study.candidates import best_candidates
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.display import Display, show
from hybrid_ray.study.plan import Plan, most_at_a_time, run_cache
from hybrid_ray.study.stopping import Budget, StopFlag, Stopped
from hybrid_ray.tasks import load_task

if TYPE_CHECKING:
    from hybrid_ray.ray_tune.search import Search

__all__ = ["Outcome", "Stages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a session on a study ended. ``text`` is printed last: the headline and the path of the report. A session that
    a budget ended is "finished" too; its ``text`` says how to continue.
    """

    status: Literal["finished", "stopped", "failed"]
    text: str
    directory: Path


class Stages:
    """One session of work on a study.

    Args:
        study: the study directory, locked by this process.
        space: the search space of its job.
        plan: expected steps, for the display.
        flag: already set if a signal came while Ray was starting.
        queued: settings to try before the presets, by name.
    """

    def __init__(
        self,
        study: StudyDirectory,
        space: SearchSpace,
        plan: Plan,
        *,
        flag: StopFlag | None = None,
        queued: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._study, self._job, self._space, self._plan = study, study.job, space, plan
        self._queued = {**(queued or {}), **space.presets}
        self._flag, self._budget = flag or StopFlag(), Budget(study.job)
        self._nodes: ClusterNodes | None = None  # once Ray runs
        self._gave_up: str | None = None  # the reason, once too many trials have failed in a row
        self._exhausted: str | None = None  # the note, once the space has no further settings

    def run(self) -> Outcome:
        """Run all stages that are not done yet. Finished runs are kept, however the session ends."""
        study, note = self._study, None
        study.store.event("started")
        with self._flag:
            try:
                with show(self._job, self._plan) as display:
                    note = self._train(display)
            except Stopped as stopped:
                if self._flag:
                    study.store.event("stopped", reason=stopped.reason, resumable=True)
                    return self._stopped()
                note = stopped.reason
        return self._report(self._gave_up or note)

    def train_frontier(self, display: Display) -> tuple[list[RunResult], int]:
        """Baseline and frontier runs, and how many runs fit at a time. Uses the connected Ray or starts one."""
        with self._flag, ray_session(self._job) as there:
            execute, side_by_side = self._executor(there, display)
            return self._frontier(execute, display), side_by_side

    def _train(self, display: Display) -> str | None:
        """Run everything that trains. If less was done than the job asks for, returns the reason."""
        with ray_session(self._job) as there:
            execute, side_by_side = self._executor(there, display)
            results = self._frontier(execute, display)
            note = self._search(results, side_by_side, display)
            self._confirm(results, execute, display)
        return note

    def _executor(self, there: Resources, display: Display) -> tuple[RayExecute, int]:
        """The executor of runs on the connected Ray, and the maximum number of runs at a time."""
        self._flag.listen()  # because Ray has installed its own signal handler
        side_by_side = min(self._plan.concurrency.runs, resource_concurrency(self._job, there))
        self._nodes = cluster_nodes(self._job, self._study.scratch)
        if self._nodes is not None:
            side_by_side = most_at_a_time(self._job)  # as many of them as fit on the nodes that there are at the time
        execute = RayExecute(
            self._job,
            concurrency=side_by_side,
            flag=self._flag,
            budget=self._budget,
            storage=self._study.scratch,
            nodes=self._nodes,
            done=lambda run, result: display.run_done(result),
        )
        return execute, side_by_side

    def _frontier(self, execute: RayExecute, display: Display) -> list[RunResult]:
        """Frontier runs, including the baseline. Those in the cache are not trained again."""
        runs = frontier_runs(self._job)
        display.stage("frontier", len(runs))
        self._study.store.event("stage", stage="frontier", runs=[_place(length).as_posix() for length in runs])
        tasks = [Task(run=run, directory=self._study.path / _place(length)) for length, run in runs.items()]
        kept, task = self._study.machine, load_task(self._job.run())
        machine = execute.machine_of_runs(tasks[0].run, known=kept.known)
        kept.check(machine)
        execute_cached = cached(execute, run_cache(self._job), corpus=task.fingerprint, machine=machine)
        results = execute_cached(tasks)
        results = comparable(results, fingerprint_of(results))
        failed = [
            f"{task.directory.name}: {result.error or result.status}"
            for task, result in zip(tasks, results, strict=True)
            if result.status != "finished"
        ]
        if failed:
            self._study.store.event("failed", stage="frontier", errors=failed)
            raise HybridRayError(
                "trials can't be scored without the baseline and frontier, and these runs did not finish: "
                + "; ".join(failed)
            )
        return results

    def _search(self, results: Sequence[RunResult], side_by_side: int, display: Display) -> str | None:
        """Run the missing trials. If some are still missing afterwards, returns the reason."""
        from hybrid_ray.ray_tune.search import run_search
        from hybrid_ray.ray_tune.searcher import MOST_EQUAL

        search = self.search(results, side_by_side, display)
        if search is None:
            return None
        self._gave_up = run_search(search)
        trained = counted_trials(self._study.store.trials())
        if trained >= self._job.search.trials:
            return None
        if not (self._gave_up or self._budget.used_up):
            self._exhausted = (
                f"The search ended after {trained} of {self._job.search.trials} trials: its last {MOST_EQUAL} "
                "proposals all equal earlier trials, so the space seems to have no other settings."
            )
        return self._budget.used_up

    def search(self, results: Sequence[RunResult], side_by_side: int, display: Display) -> "Search | None":
        """The search for the missing trials, with Optuna's study opened and repaired; None if no trial is missing.

        Args:
            results: baseline and frontier runs.
            side_by_side: maximum number of trials at a time.
        """
        from hybrid_ray.ray_tune.search import Search

        study = self._study
        scorer = TrialScorer.from_results(results, self._job.objective)
        optuna_study = open_whole_study(study.store, self._job, lambda trial: self._space.ask(trial, self._job))
        rebuild_rows(optuna_study, study.store, scorer)
        interrupted = reconcile(optuna_study, study.store, self._job)
        queue_settings(optuna_study, dict(islice(self._queued.items(), self._job.search.trials)))
        missing = self._job.search.trials - counted_trials(study.store.trials())
        study.store.event("stage", stage="search", missing=missing, interrupted=interrupted)
        if missing <= 0:
            return None
        display.stage("search", missing)
        return Search(
            study=study,
            optuna_study=optuna_study,
            space=self._space,
            spec=TrialSpec(
                job=self._job,
                scorer=scorer,
                trials=study.path / "trials",
                storage=study.scratch,
                nodes=None if self._nodes is None else self._nodes.file,
            ),
            trials=missing,
            concurrency=side_by_side,
            nodes=self._nodes,
            listener=_Listener(study, display),
            flag=self._flag,
            budget=self._budget,
        )

    def _confirm(self, results: Sequence[RunResult], execute: RayExecute, display: Display) -> None:
        """Repeat the best trials with new seeds, next to their controls. Includes trials that were confirmed before."""
        kept = self._study.path / "confirmation.json"
        before = _confirmed_before(kept)
        best = best_candidates(self._study.store.trials(), self._job, before=before)
        if not best:
            return
        self._budget.raise_if_used_up()
        display.stage("confirmation", confirmation_runs(self._job, len(best)))
        self._study.store.event("stage", stage="confirmation", trials=[candidate.trial for candidate in best])
        statistics = confirm(
            self._job,
            best,
            execute=execute,
            directory=self._study.path / "confirmation",
            frontier=Frontier.from_results(results, "test"),
            fingerprint=fingerprint_of(results),
            looks=_looks(kept),
        )
        self._study.store.write_json("confirmation.json", statistics)

    def _report(self, note: str | None) -> Outcome:
        """Write the report; returns the outcome with the text for the terminal."""
        study = self._study
        ended = "failed" if self._gave_up else "cut_short" if note else "finished"
        text = write_report(study.path, ended=ended, note=note).text
        study.store.event(ended, note=note)
        said = [
            text,
            plain_scores(load_study(study.path)),
            *([self._exhausted] if self._exhausted else []),
            f"Report: {study.path / 'report.html'}",
        ]
        if note:
            said[1:1] = [f"Note: {note}.", f"Continue with: hybrid-ray resume {study.path}"]
        return Outcome(status="failed" if self._gave_up else "finished", text="\n\n".join(said), directory=study.path)

    def _stopped(self) -> Outcome:
        study = self._study
        done = len([row for row in study.store.trials() if row["state"] != "FAIL"])
        return Outcome(
            status="stopped",
            text=f"Stopped after {done} finished trials. Continue with: hybrid-ray resume {study.path}",
            directory=study.path,
        )


class _Listener:
    """Stores the row of every trial and shows it."""

    def __init__(self, study: StudyDirectory, display: Display) -> None:
        self._study, self._display = study, display

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None:
        self._display.started(number, params, preset)

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        self._display.reported(number, result)

    def ended(self, row: Mapping[str, Any]) -> None:
        self._study.store.add_trial(row)
        self._display.ended(row)

    def gave_up(self, numbers: Sequence[int]) -> None:
        """Stored at once, because a resumed study tries these trials again (ray_tune/optuna_storage.py)."""
        self._study.store.event("gave_up", trials=numbers)


def _looks(kept: Path) -> list[int]:
    """The numbers of seeds that confirmation.json was made with."""
    if not kept.is_file():
        return []
    with contextlib.suppress(StoreError):
        before = read_json(kept)
        return [int(number) for number in before.get("looks", [len(before["seeds"])])]
    return []


def _confirmed_before(kept: Path) -> list[int]:
    """The trials in confirmation.json; if that is damaged or gone, those with runs in the folder."""
    with contextlib.suppress(StoreError):
        return [one["trial"] for one in read_json(kept)["candidates"]]
    folders = kept.with_name("confirmation")
    return sorted(int(path.name) for path in folders.glob("[0-9]*") if path.name.isdigit())


def _place(length: float) -> Path:
    return Path("baseline") if length == 1.0 else Path("frontier") / f"{length:.2f}"
