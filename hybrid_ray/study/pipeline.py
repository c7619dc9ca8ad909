"""A whole study from job to report: `run_study`, and `resume_study` and `extend_study` for one that exists.

    corpus -> plan -> Ray -> baseline and frontier -> search -> confirmation -> report

Every stage stores its results in the study directory and skips what is already there, so new, resumed and extended
studies run the same code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.objective import ranked
from hybrid_ray.ray_tune.cluster import ray_session
from hybrid_ray.ray_tune.space import SearchSpace, load_space
from hybrid_ray.study.candidates import params_of
from hybrid_ray.study.directory import StudyDirectory, identity
from hybrid_ray.study.plan import plan, resolve_auto
from hybrid_ray.study.stages import Outcome, Stages
from hybrid_ray.study.stopping import StopFlag

__all__ = ["Outcome", "extend_study", "resume_study", "run_study"]


def run_study(job: JobConfig, *, source: Path | None = None) -> Outcome:
    """Run a job in a new study directory.

    Args:
        source: the job file, for the record.

    Raises:
        ConfigError: the job can't be run here; nothing was started and no directory made.
        HybridRayError: Ray does not start (no directory is made), or the study had to end early (finished runs are
            kept).
    """
    if job.ladder.rungs:
        raise ConfigError(
            f"ladder.rungs names {', '.join(job.ladder.rungs)}, but this runs a single study, which reads none: use "
            "hybrid-ray ladder, or set ladder.rungs={}"
        )
    job = resolve_auto(job)
    space, planned = load_space(job), plan(job)
    with _ray(job) as flag, StudyDirectory.create(job, space=space, source=source) as study:
        return Stages(study, space, planned, flag=flag).run()


def resume_study(directory: Path, *, fork: bool = False) -> Outcome:
    """Continue a study that was stopped or killed until it has all its trials. Finished trials are kept.

    Args:
        fork: start a new study that first tries the best settings of the old one. Allowed even if the job, the machine
            or the code has changed.

    Raises:
        ConfigError: there is no study, or something that scores depend on has changed (space, model, corpus, machine).
        StudyLocked: another process is working on it.
    """
    with StudyDirectory.open(directory) as study:
        job = study.job = resolve_auto(study.job)  # a user may have edited job.yaml back to auto
        space = load_space(job)
        if not fork:
            study.check_identity(identity(job, space))
            return Stages(study, space, plan(job)).run()
        queued, planned = _best_params(study, space), plan(job)
    with _ray(job) as flag, StudyDirectory.create(job, space=space, source=directory) as forked:
        return Stages(forked, space, planned, flag=flag, queued=queued).run()


@contextmanager
def _ray(job: JobConfig) -> Iterator[StopFlag]:
    """Start Ray before the study directory is made, so that nothing is left behind if Ray does not start."""
    with StopFlag() as flag, ray_session(job):
        yield flag


def extend_study(directory: Path, *, trials: int) -> Outcome:
    """Continue a study until it has ``trials`` trials in total.

    Raises:
        ConfigError: as `resume_study`, or the study already has that many trials. The study is not changed.
    """
    with StudyDirectory.open(directory) as study:
        if trials <= study.job.search.trials:
            raise ConfigError(
                f"--trials is {trials} but {directory} already has {study.job.search.trials} trials: "
                "give a larger total"
            )
        job = resolve_auto(replace(study.job, search=replace(study.job.search, trials=trials)))
        space = load_space(job)
        study.check_identity(identity(job, space))
        planned = plan(job)
        study.set_job(job)
        return Stages(study, space, planned).run()


def _best_params(study: StudyDirectory, space: SearchSpace) -> dict[str, dict[str, Any]]:
    """The settings of the old study's best trials (`ranked`) that the new space allows, best first."""
    best = ranked(study.store.trials(), study.job.objective.mode)[: max(1, study.job.confirm.best)]
    found = {f"from trial {row['number']}": params_of(row) for row in best}
    return {name: params for name, params in found.items() if space.allows(params)}
