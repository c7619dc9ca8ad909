"""A whole study from job to report: `run_study`, and `resume_study` and `extend_study` for one that exists.

    corpus -> plan -> Ray -> baseline and frontier -> search -> confirmation -> report

Every stage keeps what it finished in the study directory and repeats nothing that is there, so a new study, a resumed
and an extended one take the same way.
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
        HybridRayError: Ray does not start (no directory is made), or the study began but could not go on (what was
            finished is kept).
    """
    job = resolve_auto(job)
    space, planned = load_space(job), plan(job)
    with _ray(job) as flag, StudyDirectory.create(job, space=space, source=source) as study:
        return Stages(study, space, planned, flag=flag).run()


def resume_study(directory: Path, *, fork: bool = False) -> Outcome:
    """Go on with a study that was stopped or killed. Finished trials are kept, and the asked total is reached.

    Args:
        fork: go on in a new study that first tries again what was best in the old one, so that the job, the machine or
            the code may have changed.

    Raises:
        ConfigError: no study is there, or space, model, corpus, machine, code or anything else that scores depend on
            has changed.
        StudyLocked: another driver is at work on it.
    """
    with StudyDirectory.open(directory) as study:
        job = study.job = resolve_auto(study.job)  # its file may have been edited back to what the machine decides
        space = load_space(job)
        if not fork:
            study.check_identity(identity(job, space))
            return Stages(study, space, plan(job)).run()
        queued, planned = _best_params(study, space), plan(job)
    with _ray(job) as flag, StudyDirectory.create(job, space=space, source=directory) as forked:
        return Stages(forked, space, planned, flag=flag, queued=queued).run()


@contextmanager
def _ray(job: JobConfig) -> Iterator[StopFlag]:
    """Ray for a new study, before its directory is made: where Ray does not start, nothing is left behind."""
    with StopFlag() as flag, ray_session(job):
        yield flag


def extend_study(directory: Path, *, trials: int) -> Outcome:
    """Go on with a study until it has ``trials`` trials, those already done counted in.

    Raises:
        ConfigError: as `resume_study`, or the study has that many trials already. The study is as it was.
    """
    with StudyDirectory.open(directory) as study:
        if trials <= study.job.search.trials:
            raise ConfigError(
                f"--trials is {trials} but {directory} asks for {study.job.search.trials} already: "
                "give the number of trials in all"
            )
        job = resolve_auto(replace(study.job, search=replace(study.job.search, trials=trials)))
        space = load_space(job)
        study.check_identity(identity(job, space))
        planned = plan(job)
        study.set_job(job)
        return Stages(study, space, planned).run()


def _best_params(study: StudyDirectory, space: SearchSpace) -> dict[str, dict[str, Any]]:
    """The settings of the old study's best trials (`ranked`) that the new space still allows, best first."""
    best = ranked(study.store.trials(), study.job.objective.mode)[: max(1, study.job.confirm.best)]
    found = {f"from trial {row['number']}": params_of(row) for row in best}
    return {name: params for name, params in found.items() if space.allows(params)}
