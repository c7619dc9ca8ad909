"""The search itself: Ray Tune with our searcher, scheduler and stopper, over one study directory."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
from ray import tune
from ray.tune.stopper import Stopper

from hybrid_ray.config import JobConfig
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS
from hybrid_ray.ray_tune.placement_groups import GroupReaper, sweep_groups
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.searcher import Listener, OptunaSearcher
from hybrid_ray.ray_tune.space import SearchSpace
from hybrid_ray.ray_tune.trial import TrialSpec, trial, trial_with_workers
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.stopping import Budget, StopFlag

__all__ = ["run_search"]


class FlagStopper(Stopper):
    """Ends every trial once the driver was asked to stop. A trial ends by itself otherwise."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._flag)

    def __reduce__(self) -> tuple[type["FlagStopper"], tuple[StopFlag]]:
        """Tune pickles it to a file that nothing reads; a flag with its signal handlers stays here."""
        return type(self), (StopFlag(),)


def run_search(
    study: StudyDirectory,
    optuna_study: optuna.Study,
    space: SearchSpace,
    spec: TrialSpec,
    *,
    trials: int,
    concurrency: int,
    listener: Listener,
    flag: StopFlag,
    budget: Budget,
) -> str | None:
    """Run ``trials`` more trials, fewer where the budget ends. Afterwards every trial asked is told; none is RUNNING.

    Returns:
        Why the search gave up, in words, None if it did not. A signal raises `Stopped`, after the trials are told.
    """
    job = study.job
    searcher = OptunaSearcher(
        optuna_study,
        lambda optuna_trial: space.ask(optuna_trial, job),
        mode=job.objective.mode,
        listener=listener,
        may_start=lambda: not flag and budget.used_up is None,
        reason=study.error_of,
        stop_after_failures=job.search.stop_after_failures,
    )
    try:
        with _quiet_tune():
            _tuner(study, space, spec, searcher, trials=trials, concurrency=concurrency, flag=flag).fit()
    finally:
        searcher.close("the driver was asked to stop" if flag else "the driver left the search")
        if job.resources.workers > 1:
            sweep_groups()
    flag.raise_if_set()
    return _advice(study, job) if searcher.gave_up else None


def _tuner(
    study: StudyDirectory,
    space: SearchSpace,
    spec: TrialSpec,
    searcher: OptunaSearcher,
    *,
    trials: int,
    concurrency: int,
    flag: StopFlag,
) -> tune.Tuner:
    job = study.job
    workers = job.resources.workers
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial_with_workers if workers > 1 else trial, spec=spec), _resources(job)
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=build_scheduler(job, space),
            num_samples=trials,
            max_concurrent_trials=concurrency,
            reuse_actors=workers == 1,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(study.scratch),
            stop=FlagStopper(flag),
            verbose=0,
            log_to_file=False,
            failure_config=tune.FailureConfig(max_failures=job.search.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[GroupReaper()] if workers > 1 else [],
        ),
    )


def _resources(job: JobConfig) -> dict[str, float]:
    """Of the trial's own process. With several workers that only holds a TorchTrainer, whose workers ask for theirs."""
    resources = job.resources
    if resources.workers > 1:
        return {"cpu": CONTROLLER_CPUS}
    return {"cpu": resources.cpus_per_worker, "gpu": resources.gpus}


def _advice(study: StudyDirectory, job: JobConfig) -> str:
    return (
        f"{job.search.stop_after_failures} trials failed in a row, so no more were started. The last said: "
        f"{_last_error(study)}. Look at trials/*/error.txt, try one run with `hybrid-ray train`, mend it, then "
        "`hybrid-ray resume`"
    )


def _last_error(study: StudyDirectory) -> str:
    errors = [row["error"] for row in study.store.trials() if row["state"] == "FAIL"]
    return str(errors[-1]) if errors else "nothing"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune logs what it does even at verbose=0; the display says what is worth saying."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
