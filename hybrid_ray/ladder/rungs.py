"""The learning rate of a rung: tuned on it in a few runs, changed by a width rule, or the job's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import CompareConfig, JobConfig
from hybrid_ray.config.jobfile import rung_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.study.commands import tune_learning_rate
from hybrid_ray.tasks import load_task

__all__ = ["check_ladder", "learning_rate", "width_of"]


def check_ladder(job: JobConfig) -> None:
    """Raises `ConfigError` for a job without rungs, or with a width rule but no widths."""
    if not job.ladder.rungs:
        raise ConfigError(
            "ladder.rungs is empty but a ladder needs at least one rung: name each with the settings that it changes, "
            "as in jobs/ladder_tiny.yaml"
        )
    if job.ladder.learning_rate == "width_rule":
        for rung in rung_jobs(job).values():
            width_of(rung, job.ladder.width_setting)


def learning_rate(job: JobConfig, rung: JobConfig, *, below: JobConfig | None, directory: Path) -> dict[str, Any]:
    """The learning rate of a rung and how it was found, as plain values.

    Args:
        job: the ladder's job.
        rung: the job of the rung, with its own ``train.learning_rate``.
        below: the job of the rung below as it ran; None for the first.
        directory: of the tuning runs. Finished ones are kept.

    Raises:
        HybridRayError: no tuning run finished.
        Stopped: a signal came while tuning.
    """
    ladder, start = job.ladder, rung.train.learning_rate
    if ladder.learning_rate == "width_rule":
        first = next(iter(rung_jobs(job).values()))
        widths = [width_of(one, ladder.width_setting) for one in (first, rung)]
        rate = start * (widths[1] / widths[0]) ** ladder.width_exponent
        return {"rule": "width_rule", "learning_rate": rate, "width": widths[1], "exponent": ladder.width_exponent}
    if ladder.learning_rate == "fixed":
        return {"rule": "fixed", "learning_rate": start}
    if below is not None and "train.learning_rate" not in ladder.rungs[rung.name]:
        start = below.train.learning_rate
    tuned = tune_learning_rate(
        replace(
            rung,
            train=replace(rung.train, learning_rate=start),
            compare=CompareConfig(lr_factors=ladder.lr_factors),
        ),
        directory=directory,
    )
    return {"rule": "retune", "learning_rate": tuned.best["learning_rate"], **tuned.as_dict()}


def width_of(rung: JobConfig, setting: str | None) -> float:
    """The width of a rung's model. Raises `ConfigError` if it is not known."""
    if setting is None:
        probe = load_task(rung.run()).matmul_probe()
        if probe is None:
            raise ConfigError(
                f"ladder.learning_rate is 'width_rule' but {rung.model_name} does not tell its width: name the setting "
                "that is the width in ladder.width_setting (task.options.width), or use retune"
            )
        return float(probe.width)
    value: Any = rung
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, dict) else getattr(value, key, None)
    if not isinstance(value, int | float) or value <= 0:
        raise ConfigError(
            f"ladder.width_setting is {setting!r}, which is {value!r} on rung {rung.name}: name a setting that is a "
            "number above 0 on every rung"
        )
    return float(value)
