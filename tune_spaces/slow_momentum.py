"""What predictor slow_momentum is sensitive to: its learning rate and the weight of its slow average.

Its jumps are stable up to a rate below the one that suits plain training (docs/method.md, section 3), so the rate is
searched as a factor of ``train.learning_rate``. Baseline, frontier and controls keep that rate, which was tuned for
them. Horizon and threshold are no knobs here: the one only divides a jump into steps, the other decides nothing.
"""

from typing import TYPE_CHECKING, Any

from hybrid_ray.config import JobConfig

if TYPE_CHECKING:
    import optuna

__all__ = ["presets", "space"]


def space(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    """Settings of one trial. Both matter in ratios, so both are searched in logarithms."""
    return {
        "lr_factor": trial.suggest_float("lr_factor", 0.3, 1.0, log=True),
        "predictor.alpha": trial.suggest_float("predictor.alpha", 4.0, 12.0, log=True),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """Half the rate did best in runs of several thousand steps; at the full one a smaller weight may be stable."""
    return {
        "half_rate": {"lr_factor": 0.5, "predictor.alpha": 8.0},
        "full_rate": {"lr_factor": 1.0, "predictor.alpha": 4.0},
        "between": {"lr_factor": 0.7, "predictor.alpha": 6.0},
    }
