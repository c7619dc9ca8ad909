"""The table of real `nano` runs on which studies are simulated; made by benchmarks/make_run_table.py."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from run_table import RunTable

from hybrid_ray.config import JobConfig

TABLE = Path(__file__).with_name("nano_runs.parquet")


@cache
def run_table() -> RunTable:
    return RunTable.read(TABLE)


def table_job(*, mode: str = "score", best: int = 0, **search: Any) -> JobConfig:
    """The job of the table, by default without a confirmation."""
    job = run_table().job
    return replace(
        job,
        objective=replace(job.objective, mode=mode),
        confirm=replace(job.confirm, best=best),
        search=replace(job.search, **search),
    )
