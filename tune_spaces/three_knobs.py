"""Search space: the three knobs of the method (confidence threshold, prediction horizon, correction interval).

A search space is a function that asks an Optuna trial for settings of `HybridConfig` (define-by-run); ``presets`` names
the settings to try first. To search more, copy this file, ask for more fields of `HybridConfig` (say
``full_steps = trial.suggest_int("full_steps", 1, 20)``), return them too, give the presets a value for each, and name
the function in the job: ``search.space: my_file:space``. The file must be next to the job or in the working directory.
"""

from typing import TYPE_CHECKING, Any

from hybrid_ray.config import JobConfig
from tune_spaces.presets import aggressive, conservative, largest_horizon, largest_interval, quick, short_cycles

if TYPE_CHECKING:
    import optuna

__all__ = ["presets", "space"]


def space(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    """Settings of one trial. The ranges grow with the run, so that they contain every preset.

    The threshold starts at 0 (predict in every cycle) and ends at 0.6, above which short runs never predict. It is
    searched only if it has an effect (``hybrid.gate: confidence``); otherwise many settings would be the same run. The
    horizon is searched on a log scale: 2 versus 4 steps matters as much as 20 versus 40. Interval 0 means no
    micro-corrections.
    """
    threshold = {}
    if job.hybrid.gate_kind == "confidence":
        threshold["confidence_threshold"] = trial.suggest_float("confidence_threshold", 0.0, 0.6)
    return threshold | {
        "prediction_horizon": trial.suggest_int("prediction_horizon", 1, largest_horizon(job), log=True),
        "correction_interval": trial.suggest_int("correction_interval", 0, largest_interval(job)),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """Complete settings by name, tried before anything is sampled."""
    asked = {
        "quick": quick(job),
        "conservative": conservative(job),
        "aggressive": aggressive(job),
        "short_cycles": short_cycles(job),
    }
    if job.hybrid.gate_kind != "confidence":
        for settings in asked.values():
            del settings["confidence_threshold"]
    return asked
