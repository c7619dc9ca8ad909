"""Rebuild what a study has lost from what is intact: rows of ``trials.jsonl``, or the Optuna journal.

A trial's row comes from its ``result.json`` and its settings in the journal; a trial that cannot be rebuilt counts as
interrupted, so its settings are tried again. The journal comes from the rows.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.ray_tune.optuna_storage import NAME, open_study
from hybrid_ray.ray_tune.searcher import tell, trial_row
from hybrid_ray.run_result import TrialEnd
from hybrid_ray.storage.run_cache import read_result
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.candidates import params_of

__all__ = ["open_whole_study", "rebuild_rows"]

log = logging.getLogger("hybrid_ray")

Ask = Callable[[optuna.Trial], Mapping[str, Any]]


def open_whole_study(store: StudyStore, job: JobConfig, ask: Ask) -> optuna.Study:
    """The Optuna study of a directory. If its journal is lost, damaged or does not agree with the stored rows, it is
    rebuilt from them, and the old one is kept under another name.
    """
    journal = store.directory / NAME
    rows = {int(row["number"]): row for row in store.trials()}
    if journal.exists():
        try:
            study = open_study(store.directory, job)
            if _agrees(study, rows):
                return study
        except Exception as error:  # Optuna raises many types for a damaged journal
            log.warning("%s cannot be read (%s)", journal, type(error).__name__)
        aside = journal.with_name(f"{journal.name}.damaged-{time.time_ns()}")
        os.rename(journal, aside)
        log.warning("%s does not fit the stored trials: it is kept as %s and rebuilt from them", journal, aside.name)
    study = open_study(store.directory, job)
    _fill(study, store, job, ask)
    return study


def _agrees(study: optuna.Study, rows: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether the Optuna study has all trials of the rows, with the settings and states of the rows."""
    trials = study.get_trials(deepcopy=False)
    return all(number < len(trials) and _same(trials[number], row) for number, row in rows.items())


def _same(trial: FrozenTrial, row: Mapping[str, Any]) -> bool:
    told = trial.state is TrialState.RUNNING or trial.state.name == row["state"]  # a row is stored before it is told
    return told and all(row.get(f"params_{name}") == value for name, value in trial.params.items())


def _fill(study: optuna.Study, store: StudyStore, job: JobConfig, ask: Ask) -> None:
    """Tell an empty Optuna study the stored trials, under their numbers. Numbers without a row become failed trials."""
    rows = {int(row["number"]): row for row in store.trials()}
    folders = [int(path.name) for path in (store.directory / "trials").glob("[0-9]*") if path.name.isdigit()]
    for number in range(max([*rows, *folders], default=-1) + 1):
        row = rows.get(number, {"number": number, "state": "FAIL"})
        params = params_of(row)
        if not params:
            study.tell(study.ask(), state=TrialState.FAIL)
            continue
        study.enqueue_trial(params, user_attrs={"preset": row["preset"]} if row.get("preset") else {})
        trial = study.ask()
        ask(trial)
        if row["state"] == "PRUNED" and job.objective.mode != "pareto" and row.get("objective") is not None:
            trial.report(float(row["objective"]), int(row["steps"]))
        tell(study, trial, row, job.objective.mode)


def rebuild_rows(study: optuna.Study, store: StudyStore, scorer: TrialScorer) -> int:
    """Add the rows that trials which ended in Optuna have lost. Returns how many they were."""
    known = {int(row["number"]) for row in store.trials()}
    lost = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    lost = [trial for trial in lost if trial.number not in known]
    for trial in lost:
        store.add_trial(_row(trial, store, scorer))
    if lost:
        log.warning(
            "%s had lost the rows of %d trials; they are rebuilt from their results", store.directory, len(lost)
        )
    return len(lost)


def _row(trial: FrozenTrial, store: StudyStore, scorer: TrialScorer) -> dict[str, Any]:
    result = read_result(store.run_directory(trial.number))
    measures: Mapping[str, Any] = {
        "status": "failed",
        "error": "interrupted: its row and its result were lost; its settings are queued again",
    }
    end = TrialEnd.INTERRUPTED
    if result is not None and result.status in ("finished", "diverged"):
        measures = scorer.final(result)
        end = TrialEnd.of(measures)
    return trial_row(
        trial,
        end,
        measures,
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
    )
