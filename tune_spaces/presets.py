"""Settings of the three knobs that are worth a trial before any search, scaled to the run's length.

The first three are those of the Rust trainer this project came from (docs/method.md, section 2). They were written for
runs of 50 and 1,000 steps, so horizon and interval are taken as a share of the run. ``short_cycles`` is what paid where
anything did (section 3).
Warmup, full and correct steps are the job's own: only the knobs that are searched may differ between trials.
"""

from typing import Any

from hybrid_ray.config import JobConfig

__all__ = ["aggressive", "conservative", "largest_horizon", "largest_interval", "quick", "short_cycles"]


def largest_horizon(job: JobConfig) -> int:
    """Upper end of the horizon's range: a tenth of the run (that of ``quick``), and room for short runs too."""
    return max(8, round(job.train.steps * 0.1))


def largest_interval(job: JobConfig) -> int:
    """Upper end of the interval's range: a little above that of ``conservative``, the largest of the presets."""
    return max(4, round(job.train.steps * 0.02))


def quick(job: JobConfig) -> dict[str, Any]:
    """Horizon 5 in 50 steps, no micro-corrections, threshold 0.3."""
    return _knobs(job, confidence=0.3, horizon=5 / 50, interval=0.0)


def conservative(job: JobConfig) -> dict[str, Any]:
    """Horizon 50 and interval 15 in 1,000 steps, threshold 0.60."""
    return _knobs(job, confidence=0.6, horizon=50 / 1000, interval=15 / 1000)


def aggressive(job: JobConfig) -> dict[str, Any]:
    """Horizon 75 and interval 10 in 1,000 steps, threshold 0.55."""
    return _knobs(job, confidence=0.55, horizon=75 / 1000, interval=10 / 1000)


def short_cycles(job: JobConfig) -> dict[str, Any]:
    """Three predicted steps for every five real ones, no micro-corrections, always predict: many small jumps.

    Not scaled to the run: what counts is how far a jump goes beside the real steps before it.
    """
    horizon = min(largest_horizon(job), max(1, round(0.6 * job.hybrid.full_steps)))
    return {"confidence_threshold": 0.0, "prediction_horizon": horizon, "correction_interval": 0}


def _knobs(job: JobConfig, *, confidence: float, horizon: float, interval: float) -> dict[str, Any]:
    """Horizon and interval from shares of the run, at least one step where the share is not zero."""
    steps = job.train.steps
    return {
        "confidence_threshold": confidence,
        "prediction_horizon": min(largest_horizon(job), max(1, round(horizon * steps))),
        "correction_interval": min(largest_interval(job), max(1, round(interval * steps))) if interval else 0,
    }
