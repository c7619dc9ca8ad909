"""Load and check a job's search space and presets, and turn a trial's values into settings of the method.

``search.space`` is a module of ``tune_spaces/`` or a function by ``package.module:function``:

    def space(trial, job): ...     settings of one trial by name, each asked of the Optuna trial (define by run)
    def presets(job): ...          complete settings to try first, by name; optional, in the same module
"""

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from hybrid_ray.config import HybridConfig, JobConfig, PredictorConfig
from hybrid_ray.config.named import load_module, load_named, one_sentence
from hybrid_ray.errors import ConfigError

if TYPE_CHECKING:
    import optuna

__all__ = ["SearchSpace", "load_space", "settings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """A job's search space: ``ask`` is define-by-run, ``presets`` are tried first, ``ranges`` are the distributions."""

    ask: "Callable[[optuna.Trial, JobConfig], dict[str, Any]]"
    presets: Mapping[str, Mapping[str, Any]]
    ranges: Mapping[str, Mapping[str, Any]]  # by knob: Optuna's distribution as plain values

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Whether these settings are complete and inside the space."""
        return not _preset_problems("", params, self.ranges)

    def preset_cycle(self, hybrid: HybridConfig) -> int:
        """Nominal steps of the longest cycle among the presets; of the whole space if it has none."""
        cycles = []
        for name, values in self.presets.items():
            try:
                cycles.append(_changed(hybrid, values).cycle_steps)
            except ConfigError as error:
                where = f"search.space does not suit hybrid.predictor {hybrid.predictor.name}: in its preset {name!r},"
                mend = "; three_knobs suits every predictor"
                raise ConfigError([f"{where} {problem}{mend}" for problem in error.problems]) from error
        return max(cycles, default=self.longest_cycle(hybrid))

    def longest_cycle(self, hybrid: HybridConfig) -> int:
        """Nominal steps of the longest cycle that a trial of this space can have."""
        names = ("full_steps", "prediction_horizon", "correct_steps")
        ends: dict[str, Any] = {name: int(self._ends(name, hybrid)[1]) for name in names}
        intervals = {int(end) for end in self._ends("correction_interval", hybrid)}
        smallest = 1 if 0 in intervals and max(intervals) > 0 else min(intervals)
        return replace(hybrid, correction_interval=smallest, **ends).cycle_steps

    def latest_start(self, hybrid: HybridConfig) -> int:
        """The largest number of nominal steps before the first prediction, over all trials of this space."""
        return sum(int(self._ends(name, hybrid)[1]) for name in ("warmup_steps", "full_steps"))

    def _ends(self, name: str, hybrid: HybridConfig) -> tuple[float, float]:
        found = self.ranges.get(name, {})
        if "choices" in found:
            return min(found["choices"]), max(found["choices"])
        own = getattr(hybrid, name)
        return found.get("low", own), found.get("high", own)


_OPTION = "predictor."
"""Prefix of the predictor's options: ``predictor.gain``."""


def load_space(job: JobConfig) -> SearchSpace:
    """The search space of a job. Its presets must be complete and inside the space.

    Raises:
        ConfigError: the function does not exist or fails, it asks for a value that is not a setting of the method, or a
            preset does not fit.
    """
    ask, give_presets = _functions(job)
    with one_sentence(f"search.space {job.search.space}"):
        presets = {name: dict(values) for name, values in (job.search.first or give_presets(job)).items()}
        ranges = _ranges(ask, job)
    problems = [
        f"search.space {job.search.space} asks for {name!r}, which is not a setting of HybridConfig"
        for name in ranges
        if name not in {field.name for field in fields(HybridConfig)} and not name.startswith(_OPTION)
    ]
    problems += _narrowing_problems(job.search.ranges, ranges)
    if problems:
        raise ConfigError(problems)
    if job.search.ranges:
        ask = _narrowed(ask, job.search.ranges)
        ranges = _ranges(ask, job)
        if not job.search.first:
            presets = {name: values for name, values in presets.items() if not _preset_problems("", values, ranges)}
    for name, values in presets.items():
        problems.extend(_preset_problems(name, values, ranges))
    if problems:
        raise ConfigError(problems)
    return SearchSpace(ask=ask, presets=presets, ranges=ranges)


def settings(job: JobConfig, params: Mapping[str, Any]) -> HybridConfig:
    """The job's method settings, changed by a trial's values. Raises `ConfigError` for impossible values."""
    try:
        return _changed(job.hybrid, params)
    except ConfigError as error:
        raise ConfigError([f"hybrid.{problem}" for problem in error.problems]) from error


def _changed(hybrid: HybridConfig, params: Mapping[str, Any]) -> HybridConfig:
    """The settings with some values changed, including options of the predictor."""
    own = {name: value for name, value in params.items() if not name.startswith(_OPTION)}
    options = {name.removeprefix(_OPTION): value for name, value in params.items() if name.startswith(_OPTION)}
    predictor, other = hybrid.predictor, own.pop("predictor", hybrid.predictor.name)
    if other != predictor.name:
        predictor = PredictorConfig(name=other)
    return replace(hybrid, predictor=replace(predictor, options={**predictor.options, **options}), **own)


def _functions(job: JobConfig) -> tuple[Any, Any]:
    """The space and its presets."""
    name = job.search.space_name
    if name.startswith("tune_spaces."):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name.partition(":")[0])  # our package comes before another folder of that name
    ask = load_named(name, setting="search.space", folders=job.folders)
    presets = getattr(load_module(name, setting="search.space", folders=job.folders), "presets", _no_presets)
    problems = [
        f"search.space is {name!r} but its {part} is a {type(found).__name__}: it must be a function"
        for part, found in (("space", ask), ("presets", presets))
        if not callable(found)
    ]
    if problems:
        raise ConfigError(problems)
    return ask, presets


def _no_presets(job: JobConfig) -> dict[str, dict[str, Any]]:
    return {}


class _NarrowedTrial:
    """An Optuna trial that asks for numbers inside narrower ranges."""

    def __init__(self, trial: "optuna.Trial", ranges: Mapping[str, tuple[float, float]]) -> None:
        self._trial, self._narrower = trial, ranges

    def suggest_float(self, name: str, low: float, high: float, **options: Any) -> float:
        low, high = self._narrower.get(name, (low, high))
        return self._trial.suggest_float(name, low, high, **options)

    def suggest_int(self, name: str, low: int, high: int, **options: Any) -> int:
        ends = self._narrower.get(name, (low, high))
        return self._trial.suggest_int(name, int(ends[0]), int(ends[1]), **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)


def _narrowed(ask: Any, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """The space with the ranges of ``search.ranges``."""
    return lambda trial, job: ask(_NarrowedTrial(trial, ranges), job)


def _narrowing_problems(narrower: Mapping[str, tuple[float, float]], ranges: Mapping[str, Any]) -> Iterator[str]:
    for name, (low, high) in narrower.items():
        own = ranges.get(name)
        if own is None or "choices" in own:
            numeric = ", ".join(known for known, values in ranges.items() if "choices" not in values)
            yield f"search.ranges names {name!r}, which is not a numeric setting of the space: it has {numeric}"
        elif not own["low"] <= low <= high <= own["high"]:
            yield f"search.ranges.{name} is {[low, high]} but must be inside the space's {[own['low'], own['high']]}"
        elif own["kind"] == "IntDistribution" and (low % 1 or high % 1):
            yield f"search.ranges.{name} is {[low, high]} but the setting is a whole number"


def _ranges(ask: Any, job: JobConfig) -> dict[str, dict[str, Any]]:
    """The distributions of the space, found by asking once with a temporary study."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        ask(trial, job)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: _plain(distribution) for name, distribution in trial.distributions.items()}


def _plain(distribution: "optuna.distributions.BaseDistribution") -> dict[str, Any]:
    from optuna.distributions import distribution_to_json

    written = json.loads(distribution_to_json(distribution))
    return {"kind": written["name"], **written["attributes"]}


def _preset_problems(name: str, values: Mapping[str, Any], ranges: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = [f"preset {name!r} has no value for {knob}: a preset sets every knob" for knob in ranges.keys() - values]
    problems += [f"preset {name!r} sets {knob!r}, which the space does not ask for" for knob in values.keys() - ranges]
    for knob in ranges.keys() & values.keys():
        allowed, value = ranges[knob], values[knob]
        inside = value in allowed["choices"] if "choices" in allowed else allowed["low"] <= value <= allowed["high"]
        if not inside:
            problems.append(
                f"preset {name!r} has {knob} = {value}, outside the space's range: change the preset or the range"
            )
    return problems
