"""The trials of a job as an ordinary ``ray.tune.Tuner``, for use in your own script and Ray session."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ray import tune
from ray.tune.schedulers import TrialScheduler

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.recovery.preemption import preemptions_not_counted
from hybrid_ray.ray_tune.search import Search, tuner_arguments
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.display import Display
from hybrid_ray.study.plan import plan, resolve_auto
from hybrid_ray.study.stages import Stages

__all__ = ["StudyTuner", "build_tuner"]


class StudyTuner(tune.Tuner):
    """A Tuner that stores its trials in a study directory (``directory``), which `load_study` reads.

    During ``fit()``, the first SIGINT or SIGTERM stops the trials cleanly.
    """

    def __init__(
        self,
        search: Search,
        *,
        callbacks: Sequence[tune.Callback],
        scheduler: TrialScheduler | None,
        run_config: tune.RunConfig | None,
    ) -> None:
        self.directory: Path = search.study.path
        self._search: Search | None = search
        self._searcher = search.searcher()
        super().__init__(
            **tuner_arguments(search, self._searcher, callbacks=callbacks, scheduler=scheduler, run_config=run_config)
        )

    def fit(self) -> tune.ResultGrid:
        """Run the trials, once.

        Raises:
            HybridRayError: it has already run them. ``hybrid-ray extend DIR`` runs more.
        """
        if self._search is None:
            raise HybridRayError(
                f"this tuner has already run its trials: to run more, use hybrid-ray extend {self.directory}"
            )
        search, self._search = self._search, None
        try:
            with search.flag, preemptions_not_counted(search.resources, cluster=search.nodes is not None):
                return super().fit()
        finally:
            search.leave(self._searcher)
            search.study.close()


def build_tuner(
    job: JobConfig,
    *,
    callbacks: Sequence[tune.Callback] = (),
    scheduler: TrialScheduler | None = None,
    run_config: tune.RunConfig | None = None,
) -> StudyTuner:
    """An ordinary Tuner over the job's trials, in a new study directory. ``fit()`` runs them and returns Ray's results.

    A trial is scored against the job's baseline and frontier, so these are trained before this function returns: on
    the connected Ray if ``ray.init`` was called before, else on a temporary local one. Cached runs are not trained
    again. ``fit()`` confirms nothing and writes no report; ``hybrid-ray resume DIR`` does both.

    Trials report ``objective`` (higher is better), ``score``, ``net_speedup``, ``loss``, ``step`` and more; take the
    best trial from `load_study`, because Ray's ``get_best_result(metric="objective", mode="max")`` does not exclude
    trials that diverged or never predicted.

    Args:
        job: as returned by `load_job`. Its sampler proposes the settings.
        callbacks: callbacks of Ray Tune, added to those of the job.
        scheduler: replaces the job's. Give it ``time_attr="step"``; metric and mode are filled in if it has none.
            Unlike ``search.scheduler``, it is not checked and not stored with the study.
        run_config: replaces the default; ``name`` and ``storage_path`` say where Ray stores its files. Its callbacks
            and stop conditions are added to ours.

    Raises:
        ConfigError: the job can't be run here; nothing was started and no directory made.
        HybridRayError: the baseline or frontier did not finish. Finished runs are kept.
    """
    job = resolve_auto(job)
    space, planned = load_space(job), plan(job)
    study = StudyDirectory.create(job, space=space)
    try:
        display, stages = Display(job, planned, sys.stderr), Stages(study, space, planned)
        search = stages.search(*stages.train_frontier(display), display)
        assert search is not None  # in a new study all trials are missing
        return StudyTuner(search, callbacks=callbacks, scheduler=scheduler, run_config=run_config)
    except BaseException:
        study.close()
        raise
