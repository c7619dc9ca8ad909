"""Run a study from Python: `run_study` does the same as ``hybrid-ray run`` and returns the study."""

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.study import pipeline

__all__ = ["run_study"]


def run_study(job: JobConfig) -> Study:
    """Run a job: baseline, frontier, search, confirmation, report. Progress goes to the standard error.

    Args:
        job: as `load_job` gives it.

    Returns:
        The study, as `load_study` gives it. ``study.finished`` is False if a budget ended it early.

    Raises:
        ConfigError: the job can't be run here; nothing was started and no directory made.
        HybridRayError: the study had to end early; finished runs are kept.
        KeyboardInterrupt: a signal asked to stop; the message says how to continue.
    """
    outcome = pipeline.run_study(job)
    if outcome.status == "failed":
        raise HybridRayError(outcome.text)
    if outcome.status == "stopped":
        raise KeyboardInterrupt(outcome.text)
    return load_study(outcome.directory)
