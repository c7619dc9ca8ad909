"""Tuning before the comparison: an untuned baseline or peer would make the hybrid look better than it is.

Baseline, peers and hybrid are tuned by the same rule: one run per value on the job's own seed, scored on the val split,
one setting after another, with the earlier settings at their best values. The hybrid's learning rate is tuned with as
many values as theirs; its other settings stay as the job has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import NothingFinished
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.comparable import comparable, fingerprint_of
from hybrid_ray.evaluation.runner import Execute, Task
from hybrid_ray.run_result import RunResult

__all__ = ["Tuned", "first_error", "tune", "tune_hybrid", "tuning_runs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """A job with the best settings found, and everything that was tried."""

    job: JobConfig
    tried: list[dict[str, Any]]  # setting, value and loss (val split; None: did not finish) of every run
    best: dict[str, Any]  # by setting
    at_edge: list[str]  # settings whose best value is the lowest or highest tried

    def as_dict(self) -> dict[str, Any]:
        return {"best": self.best, "tried": self.tried, "at_edge": self.at_edge}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Setting:
    """A setting to tune: its values in ascending order, and how to read and set it in a job."""

    name: str
    values: Sequence[Any]
    put: Callable[[JobConfig, Any], JobConfig]
    now: Callable[[JobConfig], Any]


def tune(job: JobConfig, *, execute: Execute, directory: Path) -> Tuned:
    """Tune the learning rate, then warmup, weight decay and betas, of plain training with ``job.train``.

    Raises:
        NothingFinished: no run finished.
    """
    return _tune(job, _plain_settings(job), lambda one: baseline(one.run()), execute, directory)


def tune_hybrid(job: JobConfig, *, rate: float, execute: Execute, directory: Path) -> Tuned:
    """Tune the hybrid's learning rate with as many values as the baseline's.

    Args:
        job: with the baseline's tuned settings.
        rate: ``train.learning_rate`` of the job before tuning.

    Raises:
        NothingFinished: no run finished.
    """
    start = rate * job.hybrid.lr_factor
    setting = _Setting(
        name="learning_rate",
        values=[start * factor for factor in _factors(job)],
        put=lambda one, value: replace(one, hybrid=replace(one.hybrid, lr_factor=value / one.train.learning_rate)),
        now=lambda one: one.run().optimizer_settings.learning_rate,
    )
    return _tune(job, [setting], lambda one: one.run(), execute, directory)


def tuning_runs(job: JobConfig) -> tuple[int, int]:
    """The largest number of runs that `tune` can take, and the number that `tune_hybrid` takes."""
    first, *others = (len(setting.values) for setting in _plain_settings(job))
    return first + sum(number - 1 for number in others), first


def first_error(results: Sequence[RunResult]) -> str:
    """The error of the first run that did not finish."""
    return next((result.error or result.status for result in results if result.status != "finished"), "no error")


def _factors(job: JobConfig) -> list[float]:
    return sorted(set(job.compare.lr_factors))


def _plain_settings(job: JobConfig) -> list[_Setting]:
    compare = job.compare
    further = {
        "lr_warmup_fraction": compare.lr_warmup_fractions,
        "weight_decay": compare.weight_decays,
        "betas": compare.betas,
    }
    return [
        _of_train("learning_rate", [job.train.learning_rate * factor for factor in _factors(job)]),
        *(
            _of_train(name, sorted({getattr(job.train, name), *values}))
            for name, values in further.items()
            if {*values} - {getattr(job.train, name)}
        ),
    ]


def _of_train(name: str, values: Sequence[Any]) -> _Setting:
    def put(job: JobConfig, value: Any) -> JobConfig:
        return replace(job, train=replace(job.train, **{name: value}))

    return _Setting(name=name, values=values, put=put, now=lambda job: getattr(job.train, name))


def _tune(
    job: JobConfig,
    settings: Sequence[_Setting],
    run: Callable[[JobConfig], RunConfig],
    execute: Execute,
    directory: Path,
) -> Tuned:
    tried: list[dict[str, Any]] = []
    best: dict[str, Any] = {}
    at_edge: list[str] = []
    lowest: float | None = None
    for setting in settings:
        # The current value was already run with the best settings so far.
        new = [value for value in setting.values if lowest is None or value != setting.now(job)]
        tasks = [
            Task(run=run(setting.put(job, value)), directory=directory / f"{setting.name}-{_text(value)}")
            for value in new
        ]
        results = execute(tasks)
        results = comparable(results, fingerprint_of(results))
        losses = [result.heldout["val"].loss if result.status == "finished" else None for result in results]
        tried += [
            {"setting": setting.name, "value": value, "loss": loss} for value, loss in zip(new, losses, strict=True)
        ]
        known = [(loss, value) for loss, value in zip(losses, new, strict=True) if loss is not None]
        known += [] if lowest is None else [(lowest, setting.now(job))]
        if not known:
            raise NothingFinished(f"no tuning run of {directory.name} finished: {first_error(results)}")
        lowest, best[setting.name] = min(known)
        job = setting.put(job, best[setting.name])
        # Of two learning rates each is an edge; two values of another setting may be all that makes sense.
        edges = (setting.values[0], setting.values[-1]) if len(setting.values) > 2 or setting is settings[0] else ()
        at_edge += [setting.name] * (best[setting.name] in edges)
    return Tuned(job=job, tried=tried, best=best, at_edge=at_edge)


def _text(value: Any) -> str:
    return "-".join(f"{one:g}" for one in value) if isinstance(value, tuple) else f"{value:g}"
