"""The search itself: Ray Tune with our searcher, scheduler and stopper, over one study directory."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import optuna
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.stopper import CombinedStopper, FunctionStopper, Stopper

from hybrid_ray.config import JobConfig
from hybrid_ray.evaluation.equal_settings import TrainedSettings
from hybrid_ray.ray_tune.checks import build_callbacks
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS
from hybrid_ray.ray_tune.nodes.follow import ClusterNodes
from hybrid_ray.ray_tune.recovery.cleaners import CleanerReaper
from hybrid_ray.ray_tune.recovery.placement_groups import GroupReaper, sweep_groups
from hybrid_ray.ray_tune.recovery.preemption import preemptions_not_counted
from hybrid_ray.ray_tune.recovery.watchdog import Watchdog, WatchTrials
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.searcher import Listener, OptunaSearcher
from hybrid_ray.ray_tune.space import SearchSpace, settings
from hybrid_ray.ray_tune.trial import TrialSpec, trial, trial_with_workers
from hybrid_ray.run_result import was_trained
from hybrid_ray.study.candidates import params_of
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.stopping import Budget, StopFlag
from hybrid_ray.training.hardware.node import node_selector

__all__ = ["Search", "run_search", "tuner_arguments"]

log = logging.getLogger("hybrid_ray")


class FlagStopper(Stopper):
    """Stops all trials once the driver was asked to stop."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self._flag)

    def __reduce__(self) -> tuple[type["FlagStopper"], tuple[StopFlag]]:
        """Tune pickles it to a file that nothing reads. The flag and its signal handlers are left out."""
        return type(self), (StopFlag(),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """One session of a study's search: the missing trials, and the listener that gets their results."""

    study: StudyDirectory
    optuna_study: optuna.Study
    space: SearchSpace
    spec: TrialSpec
    trials: int  # number of missing trials
    concurrency: int  # maximum number of trials at a time
    nodes: ClusterNodes | None  # fewer trials start while fewer fit; None: a single machine
    listener: Listener
    flag: StopFlag
    budget: Budget

    def searcher(self) -> OptunaSearcher:
        """The searcher, which proposes trials until a signal comes or the budget is used up."""
        job = self.study.job
        return OptunaSearcher(
            self.optuna_study,
            lambda optuna_trial: self.space.ask(optuna_trial, job),
            mode=job.objective.mode,
            listener=self.listener,
            may_start=lambda: not self.flag and self.budget.used_up is None,
            room=(lambda: self.concurrency) if self.nodes is None else self.nodes.runs,
            reason=self.study.error_of,
            stop_after_failures=job.search.stop_after_failures,
            trained=self._trained_settings(),
            rows=self.study.store.trials(),
        )

    @property
    def resources(self) -> Callable[[Mapping[str, Any]], tune.PlacementGroupFactory]:
        """What a trial that starts now asks for, as a function of its config. Tune pickles it."""
        return partial(_resources, job=self.study.job, nodes=None if self.nodes is None else self.nodes.file)

    def _trained_settings(self) -> TrainedSettings:
        """The settings of the trials of earlier sessions that need no new run."""
        job = self.study.job
        trained = TrainedSettings(lambda params: settings(job, params), directory=self.spec.directory)
        unknown: dict[int, Exception] = {}
        for row in self.study.store.trials():
            if row["state"] != "FAIL" and was_trained(row):
                try:
                    drawn = optuna.trial.FixedTrial(params_of(row))
                    trained.add(row["number"], self.space.ask(cast(optuna.Trial, drawn), job))
                except Exception as error:  # a user's space may raise anything
                    unknown[row["number"]] = error
        if unknown:
            number, why = next(iter(unknown.items()))
            log.warning(
                "%d earlier trials are not recognised, so trials with equal settings are trained again: search.space "
                "fails for the values of trial %d (%s: %s)",
                len(unknown), number, type(why).__name__, why,
            )  # fmt: skip
        return trained

    def leave(self, searcher: OptunaSearcher) -> None:
        """End all trials that are still RUNNING in Optuna, and free the resources of stopped trainers."""
        searcher.close("the driver was asked to stop" if self.flag else "the driver left the search")
        if self.study.job.resources.workers > 1:
            sweep_groups(self.spec.storage)


def run_search(search: Search) -> str | None:
    """Run the missing trials, or fewer if the budget is used up. Afterwards no trial is RUNNING in Optuna.

    Returns:
        The reason why the search gave up, or None. A signal raises `Stopped`, after all trials have ended in Optuna.
    """
    job, searcher = search.study.job, search.searcher()
    try:
        with _quiet_tune(), preemptions_not_counted(search.resources, cluster=search.nodes is not None):
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
    """The arguments of a ``ray.tune.Tuner`` over these trials.

    Args:
        callbacks: added to those of the job.
        scheduler: replaces the job's.
        run_config: replaces the default. Our callbacks and stop condition are added to its own. By default, Tune's
            files are in the study directory; they are kept if there are callbacks, else removed when the study closes.
    """
    job, study = search.study.job, search.study
    workers = job.resources.workers
    callbacks = [*build_callbacks(job), *callbacks]
    hang, cluster = job.resources.hang_seconds, search.nodes is not None
    watchdog = Watchdog(search.spec.storage, least=hang, cluster=cluster, ran=search.budget.spend)
    if run_config is None:
        run_config = tune.RunConfig(
            storage_path=str(study.path if callbacks else study.scratch),
            verbose=0,
            log_to_file=False,
            failure_config=tune.FailureConfig(max_failures=job.search.max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
        )
    scheduler = scheduler or build_scheduler(job, search.space)
    known = scheduler.metric is not None  # Tune accepts it in one place only
    return {
        "trainable": tune.with_resources(
            tune.with_parameters(trial_with_workers if workers > 1 else trial, spec=search.spec), search.resources
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
            callbacks=[
                WatchTrials(watchdog),
                *([GroupReaper(search.spec.storage), CleanerReaper()] if workers > 1 else []),
                *callbacks,
                *(run_config.callbacks or []),
            ],
        ),
    }


def _either(ours: Stopper, theirs: Any) -> Stopper:
    """Stop if either says so. ``theirs`` is as in `ray.tune.RunConfig`: stopper, function, or thresholds by metric."""
    if theirs is None:
        return ours
    if isinstance(theirs, Mapping):
        least = dict(theirs)
        return CombinedStopper(
            ours, FunctionStopper(lambda _, result: any(result[name] >= value for name, value in least.items()))
        )
    return CombinedStopper(ours, theirs if isinstance(theirs, Stopper) else FunctionStopper(theirs))


def _number(trial: Any) -> str:
    """The trial's name in callbacks and their files: its number in the study."""
    return f"{trial.config['number']:04d}"


def _resources(config: Mapping[str, Any], *, job: JobConfig, nodes: Path | None) -> tune.PlacementGroupFactory:
    """Resources of a trial's process, without the nodes that must not train. With several workers it holds only a
    TorchTrainer; the workers reserve theirs.
    """
    needs, several = job.resources, job.resources.workers > 1
    bundle = {"CPU": CONTROLLER_CPUS} if several else {"CPU": needs.cpus_per_worker, "GPU": needs.gpus}
    selector = node_selector(nodes, controller=several)
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector] if selector else None)


def _advice(study: StudyDirectory, job: JobConfig) -> str:
    return (
        f"{job.search.stop_after_failures} trials failed in a row, so no more were started. The last error: "
        f"{_last_error(study)}. Read trials/*/error.txt, fix the cause, test it with `hybrid-ray train`, then run "
        "`hybrid-ray resume`"
    )


def _last_error(study: StudyDirectory) -> str:
    errors = [row["error"] for row in study.store.trials() if row["state"] == "FAIL"]
    return str(errors[-1]) if errors else "nothing"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Silence Tune, which logs even at verbose=0."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
