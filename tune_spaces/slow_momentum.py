"""Search space for predictor slow_momentum: the learning rate and the weight of the slow average.

Its jumps are stable only below the learning rate that suits plain training (docs/method.md, section 3), so the rate is
searched as a factor of ``train.learning_rate``. Baseline, frontier and controls keep ``train.learning_rate``, which was
tuned for them. Horizon and threshold are not searched: the horizon only divides a jump into steps, and the threshold
has no effect.
"""

from typing import TYPE_CHECKING, Any

from hybrid_ray.config import JobConfig

if TYPE_CHECKING:
    import optuna

__all__ = ["presets", "space"]


def space(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    """Settings of one trial. Ratios matter for both, so both are searched on a log scale."""
    return {
        "lr_factor": trial.suggest_float("lr_factor", 0.15, 1.0, log=True),
        "predictor.alpha": trial.suggest_float("predictor.alpha", 4.0, 12.0, log=True),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """A quarter of the rate did best in runs of several thousand steps; the full rate needs a smaller weight."""
    return {
        "quarter_rate": {"lr_factor": 0.25, "predictor.alpha": 8.0},
        "half_rate": {"lr_factor": 0.5, "predictor.alpha": 6.0},
        "full_rate": {"lr_factor": 1.0, "predictor.alpha": 4.0},
    }
