"""Search space: gain of a predicted step, memory of the average it follows, and length of a cycle.

For the predictors that move along an average of past steps or gradients: ``ema_nesterov`` (``gain``,
``time_constant``) and ``slow_momentum`` (``alpha``, ``beta3``). Threshold, interval and correct steps are the job's.
"""

from typing import TYPE_CHECKING, Any

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError
from tune_spaces.presets import largest_horizon

if TYPE_CHECKING:
    import optuna

__all__ = ["presets", "space"]

_DECAYS = (0.9, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)  # memories of 10 to 2,000 steps


def space(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    """Gain and memory of the job's predictor, full steps and horizon. The last two ranges grow with the run."""
    return {
        **_gain_and_memory(trial, job),
        "full_steps": trial.suggest_int("full_steps", 1, _longest_full(job), log=True),
        "prediction_horizon": trial.suggest_int("prediction_horizon", 1, largest_horizon(job), log=True),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """A weak and a strong setting of gain and memory, each with short and with long cycles."""
    weak, strong = (
        ({"predictor.alpha": 4.0, "predictor.beta3": 0.99}, {"predictor.alpha": 8.0, "predictor.beta3": 0.998})
        if job.hybrid.predictor.name == "slow_momentum"
        else (
            {"predictor.gain": 1.0, "predictor.time_constant": 10.0},
            {"predictor.gain": 2.5, "predictor.time_constant": _longest_memory(job) / 2},
        )
    )
    short = {"full_steps": 5, "prediction_horizon": 3}
    long = {"full_steps": _longest_full(job), "prediction_horizon": largest_horizon(job) // 2}
    return {
        "weak, short cycles": {**weak, **short},
        "strong, short cycles": {**strong, **short},
        "weak, long cycles": {**weak, **long},
        "strong, long cycles": {**strong, **long},
    }


def _gain_and_memory(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    predictor = job.hybrid.predictor.name
    if predictor == "slow_momentum":
        return {
            "predictor.alpha": trial.suggest_float("predictor.alpha", 1.0, 32.0, log=True),
            "predictor.beta3": trial.suggest_categorical("predictor.beta3", _DECAYS),
        }
    if predictor == "ema_nesterov":
        return {
            "predictor.gain": trial.suggest_float("predictor.gain", 0.25, 5.0, log=True),
            "predictor.time_constant": trial.suggest_float(
                "predictor.time_constant", 2.0, _longest_memory(job), log=True
            ),
        }
    raise ConfigError(
        f"search.space is gain_memory_cycle but hybrid.predictor is {predictor!r}, which has no gain and memory: use "
        "ema_nesterov or slow_momentum, or another space"
    )


def _longest_memory(job: JobConfig) -> float:
    """Upper end of the memory in real steps: half the run."""
    return max(20.0, job.train.steps / 2)


def _longest_full(job: JobConfig) -> int:
    return max(8, round(job.train.steps * 0.02))
