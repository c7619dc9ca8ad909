"""The trials of a job as an ordinary ``ray.tune.Tuner``, for a Ray session and a script of one's own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ray import tune
from ray.tune.schedulers import TrialScheduler

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.search import Search, tuner_arguments
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.study.directory import StudyDirectory
from hybrid_ray.study.display import Display
from hybrid_ray.study.plan import plan, resolve_auto
from hybrid_ray.study.stages import Stages

__all__ = ["StudyTuner", "build_tuner"]


class StudyTuner(tune.Tuner):
    """A Tuner whose trials are kept in a study directory as they end: ``directory``, which `load_study` reads.

    Signals are heard while it fits: the first SIGINT or SIGTERM ends its trials in good order.
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
            HybridRayError: it has run them. ``hybrid-ray extend DIR`` goes on with more.
        """
        if self._search is None:
            raise HybridRayError(f"this tuner has run its trials: for more, hybrid-ray extend {self.directory}")
        search, self._search = self._search, None
        try:
            with search.flag:
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

    A trial is scored against the job's baseline and frontier, so these are trained first, here, before this returns:
    in the Ray that is joined (``ray.init`` came before), else in one that is started for it alone and ended. Runs that
    the cache knows are not trained again. ``fit()`` confirms nothing and writes no report; ``hybrid-ray resume DIR``
    does both with the trials it finds.

    Trials report ``objective`` (higher is better), ``score``, ``net_speedup``, ``loss``, ``step`` and more; the best is
    that of `load_study`, since Ray's ``get_best_result(metric="objective", mode="max")`` knows nothing of divergence or
    of trials that never predict.

    Args:
        job: as `load_job` gives it. Its sampler proposes the settings.
        callbacks: of Ray Tune, besides those that the job names.
        scheduler: instead of the job's. Give it ``time_attr="step"``; metric and mode are filled in where it has none.
            What is named in the job instead (``search.scheduler``) is checked and kept with the study.
        run_config: instead of ours; ``name`` and ``storage_path`` say where Ray keeps its own files. Its callbacks and
            what stops a trial are added to ours.

    Raises:
        ConfigError: the job can't be run here; nothing was started and no directory made.
        HybridRayError: baseline or frontier did not finish. What finished is kept.
    """
    job = resolve_auto(job)
    space, planned = load_space(job), plan(job)
    study = StudyDirectory.create(job, space=space)
    try:
        display, stages = Display(job, planned, sys.stderr), Stages(study, space, planned)
        search = stages.search(*stages.train_frontier(display), display)
        assert search is not None  # a new study lacks all its trials
        return StudyTuner(search, callbacks=callbacks, scheduler=scheduler, run_config=run_config)
    except BaseException:
        study.close()
        raise
