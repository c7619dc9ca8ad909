"""Settings of the three knobs to try before the search starts, scaled to the run's length.

The first three are from the Rust trainer that this project is based on (docs/method.md, section 2). They were written
for runs of 50 and 1,000 steps, so horizon and interval are stored as shares of the run. ``short_cycles`` did best in
the experiments that showed a gain (section 3). Warmup, full and correct steps are the job's: only the searched knobs
may differ between trials.
"""

from typing import Any

from hybrid_ray.config import JobConfig

__all__ = ["aggressive", "conservative", "largest_horizon", "largest_interval", "quick", "short_cycles"]


def largest_horizon(job: JobConfig) -> int:
    """Upper end of the horizon's range: a tenth of the run (as in ``quick``), but at least 8."""
    return max(8, round(job.train.steps * 0.1))


def largest_interval(job: JobConfig) -> int:
    """Upper end of the interval's range: a little above the largest preset (``conservative``), but at least 4."""
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

    Not scaled to the run: what matters is the length of a jump relative to the real steps before it.
    """
    horizon = min(largest_horizon(job), max(1, round(0.6 * job.hybrid.full_steps)))
    return {"confidence_threshold": 0.0, "prediction_horizon": horizon, "correction_interval": 0}


def _knobs(job: JobConfig, *, confidence: float, horizon: float, interval: float) -> dict[str, Any]:
    """Convert shares of the run to steps: at least one step, unless the share is zero."""
    steps = job.train.steps
    return {
        "confidence_threshold": confidence,
        "prediction_horizon": min(largest_horizon(job), max(1, round(horizon * steps))),
        "correction_interval": min(largest_interval(job), max(1, round(interval * steps))) if interval else 0,
    }
