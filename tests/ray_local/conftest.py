"""One Ray for all tests of this folder: starting it takes longer than most of them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_ray.config import JobConfig, ResourcesConfig
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
