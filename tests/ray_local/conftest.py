"""One Ray for all tests of this folder (starting it takes longer than most of them), and a job to submit."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import ConfirmConfig, JobConfig, ResourcesConfig, SearchConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.ray_tune.cluster import ray_session


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of its own on loopback, with room for runs of two workers."""
    with ray_session(JobConfig(resources=ResourcesConfig(workers=2))):
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Iterator[Path]:
    """A folder for corpus and baseline caches that tests share."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(os.path.realpath(folder))


@pytest.fixture
def job(tmp_path: Path, shared_folder: Path) -> JobConfig:
    """A study of one trial."""
    return replace(
        micro_job(shared_folder),
        studies_dir=str(tmp_path / "studies"),
        search=SearchConfig(trials=1),
        confirm=ConfirmConfig(best=0),
    )


@pytest.fixture
def job_file(tmp_path: Path, job: JobConfig) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(job))
    return path
