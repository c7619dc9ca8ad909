"""How settings are searched, with what, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybrid_ray.config.checks import at_least, choice

__all__ = ["BudgetConfig", "ResourcesConfig", "SearchConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How the three knobs are searched. ``space`` names a module of ``tune_spaces``."""

    space: str = "three_knobs"
    trials: int = 16
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: int = 4  # trials before tpe models anything, the presets counted in
    scheduler: Literal["asha", "median", "none"] = "asha"
    grace_steps: int | None = None  # None: warmup + full + 3 of the longest cycles among the presets
    reduction_factor: int = 2  # ASHA keeps one trial in so many at a rung
    seed: int = 0
    max_failures: int = 1  # retries of a trial whose worker died
    stop_after_failures: int = 5  # failed trials in a row that end the search

    def problems(self) -> Iterator[str]:
        yield from at_least("trials", self.trials, 1)
        yield from choice("sampler", self.sampler, Literal["tpe", "random"])
        yield from at_least("startup_trials", self.startup_trials, 0)
        yield from choice("scheduler", self.scheduler, Literal["asha", "median", "none"])
        yield from at_least("grace_steps", self.grace_steps, 1)
        yield from at_least("reduction_factor", self.reduction_factor, 2)
        yield from at_least("max_failures", self.max_failures, 0)
        yield from at_least("stop_after_failures", self.stop_after_failures, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one run gets. Several workers: a Ray Train TorchTrainer per run."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None  # None: 1 with device cuda, or auto and a GPU here for each worker; else 0
    max_concurrent: int | None = None  # None: as many as fit; in a search a quarter of the trials at most, or 2
    address: str = "local"  # "local", or the address of a running cluster ("auto" where the driver runs inside it)

    def problems(self) -> Iterator[str]:
        yield from at_least("workers", self.workers, 1)
        yield from at_least("cpus_per_worker", self.cpus_per_worker, 1)
        yield from at_least("gpus_per_worker", self.gpus_per_worker, 0.0)
        yield from at_least("max_concurrent", self.max_concurrent, 1)

    @property
    def gpus(self) -> float:
        """Of one worker; 0 while nothing is decided (``study/plan.py``'s `resolve_auto` decides)."""
        return self.gpus_per_worker or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """When the search stops asking for new trials. None: no limit."""

    minutes: float | None = None
    gpu_hours: float | None = None

    def problems(self) -> Iterator[str]:
        yield from at_least("minutes", self.minutes, 0.1)
        yield from at_least("gpu_hours", self.gpu_hours, 0.0)
