"""Settings of the search, its resources and its budget."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict

from hybrid_ray.config.named import NamedSetting, check_name, name_and_options
from hybrid_ray.config.section import MOST, Listed, Seed, Whole, section

__all__ = ["BudgetConfig", "ResourcesConfig", "SearchConfig"]


def _space(space: str) -> str:
    check_name(_space_name(space))
    return space


def _space_name(space: str) -> str:
    """As ``package.module:function``. A bare word is a module of ``tune_spaces``; the default function is ``space``."""
    module = space if "." in space or ":" in space else f"tune_spaces.{space}"
    return module if ":" in module else f"{module}:space"


def _sampler(setting: NamedSetting) -> NamedSetting:
    return check_name(setting, ("tpe", "random"))


def _scheduler(setting: NamedSetting) -> NamedSetting:
    return check_name(setting, ("asha", "median", "none"))


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the low end must not be above the high one")
    return ends


Range = Annotated[Annotated[tuple[float, float], Strict(False)], AfterValidator(_rising)]
"""The lowest and the highest value, written as a list."""


@section
class SearchConfig:
    """The search over settings of the hybrid method. ``sampler``, ``scheduler`` and ``callbacks`` take a name, or
    ``{name: package.module:Name, option: value}``.
    """

    space: Annotated[str, AfterValidator(_space)] = Field(
        default="three_knobs", description="The search space: a module of tune_spaces, or package.module:function"
    )
    ranges: Mapping[str, Range] = field(
        default_factory=dict,
        metadata={
            "description": "Narrower ranges for numeric settings of the space (prediction_horizon: [2, 20]). Presets "
            "outside them are left out"
        },
    )
    first: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={
            "description": "Complete settings to try first, by name, instead of the presets of the space; a ladder "
            "carries the best settings of a smaller model up with it"
        },
    )
    trials: int = Field(
        default=16,
        ge=1,
        le=100_000,
        description="Number of trials to train, presets included. Settings that equal an earlier trial do not count",
    )
    sampler: Annotated[NamedSetting, AfterValidator(_sampler)] = Field(
        default="tpe",
        description="Proposes settings: tpe, random, or another Optuna sampler, such as optuna.samplers:GPSampler",
    )
    # Median search cost with 2, 4 and 8 of them: 22, 16 and 12 baseline runs for the score, 9.5, 8.4 and 11 for the net
    # speedup (benchmarks/search_efficiency.py --startup 2 4 8; the 95 % intervals overlap).
    startup_trials: Whole = Field(default=4, description="Trials before tpe uses its model, presets included")
    scheduler: Annotated[NamedSetting, AfterValidator(_scheduler)] | None = Field(
        default=None,
        description="Stops bad trials early: asha, median, none, or another scheduler of Ray Tune, such as "
        "ray.tune.schedulers:HyperBandScheduler; null: asha, or none in objective.mode net",
    )
    callbacks: Listed[Annotated[NamedSetting, AfterValidator(check_name)]] = Field(
        default=(), description="Callbacks of Ray Tune, such as ray.tune.logger:CSVLoggerCallback"
    )
    grace_steps: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Steps before a trial can be stopped; null: warmup_steps, full_steps and three of the presets' "
        "longest cycles",
    )
    reduction_factor: int = Field(
        default=2, ge=2, le=1000, description="For asha. One trial in this many continues at each rung"
    )
    seed: Seed = Field(default=0, description="Seed of the sampler")
    max_failures: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="How often a run of any stage is restarted after an error or the death of a worker. Preemption "
        "(SIGTERM to a worker, a lost node) does not count",
    )
    stop_after_failures: int = Field(
        default=5, ge=1, le=100_000, description="The search ends after this many failed trials in a row"
    )

    @property
    def space_name(self) -> str:
        """The space as ``package.module:function``."""
        return _space_name(self.space)

    @property
    def named(self) -> dict[str, str]:
        """The user's own space, sampler, scheduler and callbacks, by setting."""
        found: dict[str, NamedSetting | None] = {
            "space": self.space_name, "sampler": self.sampler, "scheduler": self.scheduler,
            **{f"callbacks.{index}": callback for index, callback in enumerate(self.callbacks)},
        }  # fmt: skip
        names = {place: name_and_options(setting)[0] for place, setting in found.items() if setting is not None}
        return {place: name for place, name in names.items() if ":" in name and not name.startswith("tune_spaces.")}


@section
class ResourcesConfig:
    """Processes, CPU cores and GPUs of one run. With several workers, each run is a Ray Train TorchTrainer."""

    workers: int = Field(default=1, ge=1, le=100_000, description="Processes that train one model together")
    cpus_per_worker: int = Field(default=1, ge=1, le=100_000, description="CPU cores of one worker")
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0.0,
        le=1000.0,
        description="GPUs of one worker; null: 1 if train.device is cuda, or if it is auto and there is a GPU for each "
        "worker; else 0",
    )
    max_concurrent: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Maximum number of runs at a time; null: as many as fit. A search then runs at most a quarter of "
        "its trials at a time, but at least 2. On a cluster the number follows the nodes; if it is set, one more run "
        "than fits waits, so that an autoscaler adds nodes",
    )
    hang_seconds: float = Field(
        default=60.0,
        gt=0.0,
        le=1e6,
        description="A run without a step for this long, or for ten planned evaluation intervals if they are longer, "
        "is ended and restarted. A start or an evaluation may take 15 times as long",
    )
    address: str = Field(
        default="local",
        description="Ray cluster: local (this machine), the address of a running cluster, or auto inside a cluster",
    )

    @property
    def gpus(self) -> float:
        """GPUs of one worker; 0 until `resolve_auto` (``study/plan.py``) has decided."""
        return self.gpus_per_worker or 0.0


@section
class BudgetConfig:
    """Limits after which the search starts no more trials."""

    minutes: float | None = Field(
        default=None, gt=0.0, le=1e7, description="Maximum time of the search in minutes; null: no limit"
    )
    gpu_hours: float | None = Field(
        default=None,
        ge=0.0,
        le=1e9,
        description="Maximum GPU hours of all its runs, without their waiting for a free GPU; null: no limit",
    )
