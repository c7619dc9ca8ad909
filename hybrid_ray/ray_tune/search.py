"""The search itself: Ray Tune with our searcher, scheduler and stopper, over one study directory."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.stopper import CombinedStopper, FunctionStopper, Stopper

from hybrid_ray.config import JobConfig
from hybrid_ray.ray_tune.checks import build_callbacks
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS
from hybrid_ray.ray_tune.placement_groups import GroupReaper, sweep_groups
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.searcher import Listener, OptunaSearcher
from hybrid_ray.ray_tune.space import SearchSpace
from hybrid_ray.ray_tune.trial import TrialSpec, trial, trial_with_workers
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.stopping import Budget, StopFlag

__all__ = ["Search", "run_search", "tuner_arguments"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """One session of a study's search: what is left of it, and who hears of it."""

    study: StudyDirectory
    optuna_study: optuna.Study
    space: SearchSpace
    spec: TrialSpec
    trials: int  # more of them
    concurrency: int
    listener: Listener
    flag: StopFlag
    budget: Budget

    def searcher(self) -> OptunaSearcher:
        """It asks for trials until a signal came or the budget ends."""
        job = self.study.job
        return OptunaSearcher(
            self.optuna_study,
            lambda optuna_trial: self.space.ask(optuna_trial, job),
            mode=job.objective.mode,
            listener=self.listener,
            may_start=lambda: not self.flag and self.budget.used_up is None,
            reason=self.study.error_of,
            stop_after_failures=job.search.stop_after_failures,
        )

    def leave(self, searcher: OptunaSearcher) -> None:
        """Tell every trial that is still open, so that none is RUNNING, and free what stopped trainers left."""
        searcher.close("the driver was asked to stop" if self.flag else "the driver left the search")
        if self.study.job.resources.workers > 1:
            sweep_groups()


def run_search(search: Search) -> str | None:
    """Run the trials that are left, fewer where the budget ends. Afterwards every trial asked is told; none is RUNNING.

    Returns:
        Why the search gave up, in words, None if it did not. A signal raises `Stopped`, after the trials are told.
    """
    job, searcher = search.study.job, search.searcher()
    try:
        with _quiet_tune():
            tune.Tuner(**tuner_arguments(search, searcher)).fit()
    finally:
        search.leave(searcher)
    search.flag.raise_if_set()
    return _advice(search.study, job) if searcher.gave_up else None


def tuner_arguments(
    search: Search,
    searcher: OptunaSearcher,
    *,
    callbacks: Sequence[tune.Callback] = (),
    scheduler: TrialScheduler | None = None,
    run_config: tune.RunConfig | None = None,
) -> dict[str, Any]:
    """What a ``ray.tune.Tuner`` over these trials is made of.

    Args:
        callbacks: besides those that the job names.
        scheduler: instead of the job's.
        run_config: instead of ours, but for its callbacks and what stops a trial, to which ours are added. Ours keeps
            Tune's files in the study: for good where callbacks write there, else until the study is closed.
    """
    job, study = search.study.job, search.study
    workers = job.resources.workers
    callbacks = [*build_callbacks(job), *callbacks]
    if run_config is None:
        run_config = tune.RunConfig(
            storage_path=str(study.path if callbacks else study.scratch),
            verbose=0,
            log_to_file=False,
            failure_config=tune.FailureConfig(max_failures=job.search.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        )
    scheduler = scheduler or build_scheduler(job, search.space)
    known = scheduler.metric is not None  # Tune takes it from one place alone
    return {
        "trainable": tune.with_resources(
            tune.with_parameters(trial_with_workers if workers > 1 else trial, spec=search.spec), _resources(job)
        ),
        "tune_config": tune.TuneConfig(
            metric=None if known else "objective",
            mode=None if known else "max",
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=search.trials,
            max_concurrent_trials=search.concurrency,
            reuse_actors=workers == 1,
            trial_name_creator=_number,
            trial_dirname_creator=_number,
        ),
        "run_config": replace(
            run_config,
            name=run_config.name or "tune",
            stop=_either(FlagStopper(search.flag), run_config.stop),
            callbacks=[*([GroupReaper()] if workers > 1 else []), *callbacks, *(run_config.callbacks or [])],
        ),
    }


def _either(ours: Stopper, theirs: Any) -> Stopper:
    """Stop by either. Theirs as `ray.tune.RunConfig` takes it: a stopper, a function, or the least values by metric."""
    if theirs is None:
        return ours
    if isinstance(theirs, Mapping):
        least = dict(theirs)
        return CombinedStopper(
            ours, FunctionStopper(lambda _, result: any(result[name] >= value for name, value in least.items()))
        )
    return CombinedStopper(ours, theirs if isinstance(theirs, Stopper) else FunctionStopper(theirs))


def _number(trial: Any) -> str:
    """What callbacks and their files call a trial: its number in the study."""
    return f"{trial.config['number']:04d}"


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
