"""A part of the local Ray that has died is noticed, also while its parent has not read its exit code."""

import pickle
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.recovery.local_ray import LocalRay


@pytest.mark.parametrize("step", [-86_400, 1, 86_400])
def test_a_dead_scheduler_is_noticed_and_a_clock_that_is_set_is_no_death(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    raylet = tmp_path / "raylet"  # the name by which it is known
    shutil.copy(Path(sleep).resolve(), raylet)
    process = subprocess.Popen([raylet, "600"])
    try:
        here, cluster = LocalRay(cluster=False), LocalRay(cluster=True)
        pickle.loads(pickle.dumps(here)).check()  # Tune pickles it
        by_the_clock = psutil.boot_time() + step
        monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: by_the_clock)  # create_time adds it too
        assert psutil.Process(process.pid).create_time() == pytest.approx(time.time() + step, abs=600)
        here.check()
    finally:
        process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    cluster.check()
    with pytest.raises(HybridRayError, match=rf"its scheduler \(raylet, process {process.pid}\) was killed.*resume"):
        here.check()
    process.wait()
    with pytest.raises(HybridRayError, match="has died"):
        here.check()
