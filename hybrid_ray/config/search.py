"""How settings are searched, with what, and for how long."""

from typing import Annotated

from pydantic import AfterValidator, Field

from hybrid_ray.config.named import NamedSetting, check_name, name_and_options
from hybrid_ray.config.section import MOST, Listed, Seed, Whole, section

__all__ = ["BudgetConfig", "ResourcesConfig", "SearchConfig"]


def _space(space: str) -> str:
    check_name(_space_name(space))
    return space


def _space_name(space: str) -> str:
    """As ``package.module:function``. A bare word is a module of ours; a module has the function ``space``."""
    module = space if "." in space or ":" in space else f"tune_spaces.{space}"
    return module if ":" in module else f"{module}:space"


def _sampler(setting: NamedSetting) -> NamedSetting:
    return check_name(setting, ("tpe", "random"))


def _scheduler(setting: NamedSetting) -> NamedSetting:
    return check_name(setting, ("asha", "median", "none"))


@section
class SearchConfig:
    """How the hybrid method's settings are searched. ``sampler``, ``scheduler`` and ``callbacks`` take a name, or
    ``{name: package.module:Name, option: value}``.
    """

    space: Annotated[str, AfterValidator(_space)] = Field(
        default="three_knobs", description="The search space: a module of tune_spaces, or package.module:function"
    )
    trials: int = Field(default=16, ge=1, le=100_000, description="Trials in all, presets included")
    sampler: Annotated[NamedSetting, AfterValidator(_sampler)] = Field(
        default="tpe",
        description="Proposes settings: tpe, random, or optuna.samplers:GPSampler and such",
    )
    startup_trials: Whole = Field(default=4, description="Trials before tpe models anything, presets included")
    scheduler: Annotated[NamedSetting, AfterValidator(_scheduler)] = Field(
        default="asha",
        description="Stops bad trials: asha, median, none, or ray.tune.schedulers:HyperBandScheduler and such",
    )
    callbacks: Listed[Annotated[NamedSetting, AfterValidator(check_name)]] = Field(
        default=(), description="Callbacks of Ray Tune: ray.tune.logger:CSVLoggerCallback and such"
    )
    grace_steps: int | None = Field(
        default=None,
        ge=1,
        le=MOST,
        description="Steps that every trial gets; null: warmup, full and 3 of the longest cycles of the presets",
    )
    reduction_factor: int = Field(default=2, ge=2, le=1000, description="asha keeps one trial in so many at a rung")
    seed: Seed = Field(default=0, description="Seed of the sampler")
    max_failures: int = Field(default=1, ge=0, le=1000, description="Retries of a trial whose worker died")
    stop_after_failures: int = Field(
        default=5, ge=1, le=100_000, description="Failed trials in a row that end the search"
    )

    @property
    def space_name(self) -> str:
        """The space as ``package.module:function``."""
        return _space_name(self.space)

    @property
    def named(self) -> dict[str, str]:
        """What is none of ours, by place."""
        found: dict[str, NamedSetting] = {
            "space": self.space_name, "sampler": self.sampler, "scheduler": self.scheduler,
            **{f"callbacks.{index}": callback for index, callback in enumerate(self.callbacks)},
        }  # fmt: skip
        names = {place: name_and_options(setting)[0] for place, setting in found.items()}
        return {place: name for place, name in names.items() if ":" in name and not name.startswith("tune_spaces.")}


@section
class ResourcesConfig:
    """What one run gets. Several workers: each run is a Ray Train TorchTrainer."""

    workers: int = Field(default=1, ge=1, le=100_000, description="Processes that train one model together")
    cpus_per_worker: int = Field(default=1, ge=1, le=100_000, description="CPU cores of one worker")
    gpus_per_worker: float | None = Field(
        default=None,
        ge=0.0,
        le=1000.0,
        description="GPUs of one worker; null: 1 if train.device is cuda, or is auto and there is a GPU for each "
        "worker, else 0",
    )
    max_concurrent: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Runs at a time; null: as many as fit, in a search at most a quarter of the trials, or 2",
    )
    address: str = Field(
        default="local", description="local, the address of a running Ray cluster, or auto inside a cluster"
    )

    @property
    def gpus(self) -> float:
        """Of one worker; 0 while nothing is decided (``study/plan.py``'s `resolve_auto` decides)."""
        return self.gpus_per_worker or 0.0


@section
class BudgetConfig:
    """When the search stops starting trials."""

    minutes: float | None = Field(default=None, gt=0.0, le=1e7, description="Minutes of the search; null: no limit")
    gpu_hours: float | None = Field(
        default=None, ge=0.0, le=1e9, description="GPU hours of all its runs; null: no limit"
    )
