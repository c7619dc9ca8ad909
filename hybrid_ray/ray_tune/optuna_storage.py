"""The Optuna study inside a study directory: opened, repaired, and squared with the rows that were kept.

Called only under the study's lock, so a torn last line or a leftover lock file is that of a writer that is dead.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hybrid_ray.config import JobConfig
from hybrid_ray.ray_tune.sampler import build_sampler
from hybrid_ray.ray_tune.searcher import queue_again, tell, was_interrupted
from hybrid_ray.run_result import TrialEnd
from hybrid_ray.storage.jsonl import repair_last_line
from hybrid_ray.storage.study_store import StudyStore

__all__ = ["counted_trials", "open_study", "queue_settings", "reconcile"]

NAME = "optuna.journal"


def open_study(directory: Path, job: JobConfig) -> optuna.Study:
    """The study of a directory, made with its name and directions when there is none.

    Its file ends in a whole line after this, and its sampler does not draw again what an earlier session drew.
    """
    path = directory / NAME
    repair_last_line(path)  # Optuna would read past a torn one once, and after the next append never again
    for leftover in directory.glob(f"{NAME}.*"):  # Optuna's own lock: left behind by a kill, and waited for 30 s
        leftover.unlink()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [StudyDirection.MAXIMIZE]
    if job.objective.mode == "pareto":
        directions.append(StudyDirection.MINIMIZE)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=job.name,
        directions=directions,
        load_if_exists=True,
    )
    study.sampler = build_sampler(job, seed=job.search.seed + len(study.get_trials(deepcopy=False)))
    return study


def queue_settings(study: optuna.Study, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Ask for these complete assignments before anything is sampled."""
    for name, values in presets.items():
        study.enqueue_trial(dict(values), user_attrs={"preset": name}, skip_if_exists=True)


def counted_trials(rows: Iterable[Mapping[str, Any]]) -> int:
    """Trials that came to an end of their own: what counts towards the number a job asks for."""
    return sum(not was_interrupted(row) for row in rows)


def reconcile(study: optuna.Study, store: StudyStore, job: JobConfig) -> int:
    """Make the study agree with the rows that were kept. Returns how many trials' settings were queued again.

    No trial is left RUNNING after a driver was killed. One whose row was kept had ended: it is told as its row says.
    Any other was half done: it gets a row that says so. What failed in a row until the search gave up is given another
    chance too: whoever resumes has mended something.
    """
    _give_another_chance(store)
    rows = {row["number"]: row for row in store.trials()}
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if frozen.number not in rows:
            rows[frozen.number] = _interrupted_row(frozen)
            store.add_trial(rows[frozen.number])
        tell(study, optuna.trial.Trial(study, frozen._trial_id), rows[frozen.number], job.objective.mode)
    return sum(queue_again(study, number) for number, row in rows.items() if was_interrupted(row))


def _give_another_chance(store: StudyStore) -> None:
    """Rows of failures that ended a search: interrupted, from now on."""
    given_up = {number for event in store.events() if event["event"] == "gave_up" for number in event["trials"]}
    changes = {
        row["number"]: {
            "end": TrialEnd.INTERRUPTED,
            "error": f"interrupted: the search gave up after it ({row['error']}); its settings are queued again",
        }
        for row in store.trials()
        if row["number"] in given_up and not was_interrupted(row)
    }
    if changes:
        store.amend_trials(changes)


def _interrupted_row(frozen: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        "number": frozen.number,
        "state": TrialState.FAIL.name,
        **{f"params_{name}": value for name, value in frozen.params.items()},
        "status": "failed",
        "error": "interrupted: the driver was killed; its settings are queued again",
        "end": TrialEnd.INTERRUPTED,
        "preset": frozen.user_attrs.get("preset"),
        "started": frozen.datetime_start.timestamp() if frozen.datetime_start else None,
        "ended": None,
    }
