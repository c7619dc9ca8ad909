"""The table of real `nano` runs that studies are simulated on (benchmarks/surface.py made it)."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.ray_tune.surface import Surface

TABLE = Path(__file__).with_name("nano_surface.parquet")


@cache
def surface() -> Surface:
    return Surface.read(TABLE)


def table_job(*, mode: str = "score", best: int = 0, **search: Any) -> JobConfig:
    """The job of the table; nothing is confirmed unless asked for."""
    job = surface().job
    return replace(
        job,
        objective=replace(job.objective, mode=mode),
        confirm=replace(job.confirm, best=best),
        search=replace(job.search, **search),
    )
