"""Open and repair the Optuna study in a study directory, and make it agree with the stored rows.

Called only under the study's lock, so an incomplete last line or a leftover lock file comes from a dead process.
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
from hybrid_ray.ray_tune.searcher import queue_again, tell, trial_row, was_interrupted
from hybrid_ray.run_result import TrialEnd, was_trained
from hybrid_ray.storage.jsonl import repair_last_line
from hybrid_ray.storage.study_store import StudyStore

__all__ = ["NAME", "counted_trials", "open_study", "queue_settings", "reconcile"]

NAME = "optuna.journal"


def open_study(directory: Path, job: JobConfig) -> optuna.Study:
    """The Optuna study of a directory; made if there is none.

    Repairs an incomplete last line. The sampler's seed depends on the number of trials, so a resumed session does not
    repeat earlier draws.
    """
    path = directory / NAME
    repair_last_line(path)  # Optuna skips an incomplete last line, but fails once another is appended
    for leftover in directory.glob(f"{NAME}.lock*"):  # Optuna's lock; after a kill it would wait 30 s for it
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
    """Queue these complete settings, to be tried before anything is sampled."""
    for name, values in presets.items():
        study.enqueue_trial(dict(values), user_attrs={"preset": name}, skip_if_exists=True)


def counted_trials(rows: Iterable[Mapping[str, Any]]) -> int:
    """The number of trials that count towards ``search.trials``: those that were trained and not interrupted."""
    return sum(was_trained(row) and not was_interrupted(row) for row in rows)


def reconcile(study: optuna.Study, store: StudyStore, job: JobConfig) -> int:
    """Make the Optuna study agree with the stored rows. Returns how many trials' settings were queued again.

    After a driver was killed, no trial stays RUNNING. A trial with a row had ended, so Optuna gets the row's result. A
    trial without one gets a row as interrupted. The failed trials that ended a search are queued again too, because the
    user has probably fixed the cause.
    """
    _give_another_chance(store)
    rows = {row["number"]: row for row in store.trials()}
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if frozen.number not in rows:
            killed = {"status": "failed", "error": "interrupted: the driver was killed; its settings are queued again"}
            started = frozen.datetime_start.timestamp() if frozen.datetime_start else None
            rows[frozen.number] = trial_row(frozen, TrialEnd.INTERRUPTED, killed, started=started, ended=None)
            store.add_trial(rows[frozen.number])
        tell(study, optuna.trial.Trial(study, frozen._trial_id), rows[frozen.number], job.objective.mode)
    return sum(queue_again(study, number) for number, row in rows.items() if was_interrupted(row))


def _give_another_chance(store: StudyStore) -> None:
    """Mark the failed trials that ended a search as interrupted."""
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
