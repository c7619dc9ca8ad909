"""The Optuna study inside a study directory: opened, repaired, and squared with the rows that were kept.

Called only under the study's lock, so a torn last line or a leftover lock file is that of a writer that is dead.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hybrid_ray.config import JobConfig
from hybrid_ray.results.store import StudyStore
from hybrid_ray.tune.searcher import INTERRUPTED, interrupt, tell

__all__ = ["counted_trials", "open_study", "queue_settings", "reconcile"]

NAME = "optuna.journal"


def open_study(directory: Path, job: JobConfig) -> optuna.Study:
    """The study of a directory, made with its name and directions when there is none. It ends in a whole line after
    this.
    """
    path = directory / NAME
    _trim_torn_line(path)
    for leftover in directory.glob(f"{NAME}.*"):  # Optuna's own lock: left behind by a kill, and waited for 30 s
        leftover.unlink()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = [StudyDirection.MAXIMIZE]
    if job.objective.mode == "pareto":
        directions.append(StudyDirection.MINIMIZE)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=job.name,
        directions=directions,
        sampler=_sampler(job),
        load_if_exists=True,
    )


def queue_settings(study: optuna.Study, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Ask for these complete assignments before anything is sampled."""
    for name, values in presets.items():
        study.enqueue_trial(dict(values), user_attrs={"preset": name}, skip_if_exists=True)


def counted_trials(study: optuna.Study) -> int:
    """Trials that came to an end of their own: what counts towards the number a job asks for."""
    return sum(
        trial.state.is_finished() and INTERRUPTED not in trial.user_attrs for trial in study.get_trials(deepcopy=False)
    )


def reconcile(study: optuna.Study, store: StudyStore, job: JobConfig) -> int:
    """Leave no trial RUNNING after a driver was killed. Returns how many were interrupted and queued again.

    A trial whose row was kept had ended: it is told as its row says. Any other was half done: it fails, gets a row that
    says so, and its settings are queued again.
    """
    rows = {row["number"]: row for row in store.trials()}
    interrupted = 0
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = optuna.trial.Trial(study, frozen._trial_id)
        row = rows.get(frozen.number)
        if row is not None and not str(row["error"] or "").startswith(INTERRUPTED):
            tell(study, trial, row, job.objective.mode)
            continue
        if row is None:
            store.add_trial(_interrupted_row(frozen))
        interrupt(study, trial)
        interrupted += 1
    return interrupted


def _interrupted_row(frozen: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        "number": frozen.number,
        "state": TrialState.FAIL.name,
        **{f"params_{name}": value for name, value in frozen.params.items()},
        "status": "failed",
        "error": f"{INTERRUPTED}: the driver was killed; its settings are queued again",
        "preset": frozen.user_attrs.get("preset"),
        "started": frozen.datetime_start.timestamp() if frozen.datetime_start else None,
        "ended": None,
    }


def _sampler(job: JobConfig) -> optuna.samplers.BaseSampler:
    """TPE that models the knobs together and counts trials still running as bad, so that neighbours don't ask the
    same.
    """
    search = job.search
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=search.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=search.startup_trials, multivariate=True, constant_liar=True, seed=search.seed
        )


def _trim_torn_line(path: Path) -> None:
    """Cut what follows the last newline: Optuna would read past it once, and after the next append never again."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
        warnings.warn(
            f"{path} ended in a torn line (a killed writer): {len(content) - whole} bytes dropped", stacklevel=3
        )
