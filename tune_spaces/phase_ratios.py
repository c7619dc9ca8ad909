"""Search space: the steps of warmup, full, predict and correct. Threshold and correction interval are the job's.

The published GPT-2 run of 50 steps spent 10 % in warmup, 20 % in full, 40 % in predict and 30 % in correct steps
(docs/method.md, section 2), but it did not compare other shares. Early stopping waits for the longest warmup of the
space, so that no trial is judged before it could predict.
"""

from typing import TYPE_CHECKING, Any

from hybrid_ray.config import JobConfig
from tune_spaces.presets import largest_horizon

if TYPE_CHECKING:
    import optuna

__all__ = ["presets", "space"]

_LONGEST_WARMUP = 0.25  # share of the run
_LONGEST_FULL = 0.05
_LONGEST_CORRECT = 0.05


def space(trial: "optuna.Trial", job: JobConfig) -> dict[str, Any]:
    """Steps of each phase. The ranges grow with the run; all except the correct steps are searched on a log scale."""
    longest = _longest(job)
    return {
        "warmup_steps": trial.suggest_int("warmup_steps", 1, longest["warmup_steps"], log=True),
        "full_steps": trial.suggest_int("full_steps", 1, longest["full_steps"], log=True),
        "prediction_horizon": trial.suggest_int("prediction_horizon", 1, longest["prediction_horizon"], log=True),
        "correct_steps": trial.suggest_int("correct_steps", 0, longest["correct_steps"]),
    }


def presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    """The published shares, the same without correct steps, and the settings planned for 1,000 steps."""
    steps = job.train.steps
    return {
        "published": _inside(job, warmup=0.1 * steps, full=0.008 * steps, predict=0.016 * steps, correct=0.012 * steps),
        "no_correction": _inside(job, warmup=0.1 * steps, full=0.008 * steps, predict=0.016 * steps, correct=0),
        "planned": _inside(job, warmup=0.1 * steps, full=0.02 * steps, predict=0.05 * steps, correct=0.005 * steps),
    }


def _longest(job: JobConfig) -> dict[str, int]:
    steps = job.train.steps
    return {
        "warmup_steps": max(2, round(_LONGEST_WARMUP * steps)),
        "full_steps": max(4, round(_LONGEST_FULL * steps)),
        "prediction_horizon": largest_horizon(job),
        "correct_steps": max(4, round(_LONGEST_CORRECT * steps)),
    }


def _inside(job: JobConfig, *, warmup: float, full: float, predict: float, correct: float) -> dict[str, Any]:
    """Round to whole steps and limit them to the ranges."""
    longest = _longest(job)
    wanted = {"warmup_steps": warmup, "full_steps": full, "prediction_horizon": predict}
    steps = {name: min(longest[name], max(1, round(value))) for name, value in wanted.items()}
    return {**steps, "correct_steps": min(longest["correct_steps"], round(correct))}
