"""A budget that cannot limit anything is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import BudgetConfig, ResourcesConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.study.pipeline import run_study
from hybrid_ray.study.stopping import check_budget


def test_gpu_hours_need_a_gpu(tmp_path: Path) -> None:
    job = micro_job(tmp_path, budget=BudgetConfig(gpu_hours=2.0), resources=ResourcesConfig(gpus_per_worker=0.0))
    with pytest.raises(ConfigError, match=r"gpu_hours is 2 but the runs use no GPU.*budget\.minutes"):
        run_study(job)
    assert not (tmp_path / "studies").exists()
    check_budget(replace(job, resources=ResourcesConfig(gpus_per_worker=0.5)))
    check_budget(replace(job, budget=BudgetConfig(minutes=5.0)))
