"""How settings are searched, with what, and for how long."""

from typing import Literal

from pydantic import Field

from hybrid_ray.config.section import MOST, Seed, Whole, section

__all__ = ["BudgetConfig", "ResourcesConfig", "SearchConfig"]


@section
class SearchConfig:
    """How the hybrid method's settings are searched."""

    space: str = Field(
        default="three_knobs", description="The search space: a module of tune_spaces, or any module by its path"
    )
    trials: int = Field(default=16, ge=1, le=100_000, description="Trials in all, presets included")
    sampler: Literal["tpe", "random"] = Field(default="tpe", description="How Optuna proposes settings")
    startup_trials: Whole = Field(default=4, description="Trials before tpe models anything, presets included")
    scheduler: Literal["asha", "median", "none"] = Field(default="asha", description="What stops bad trials early")
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
