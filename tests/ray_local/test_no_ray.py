"""A machine on which Ray cannot start: one line says so, and no study directory is left behind."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config.jobfile import dump_job

pytestmark = [pytest.mark.ray_local, pytest.mark.slow]
FILES = 40  # enough for Python and torch, too few for Ray


def test_ray_that_does_not_start_is_one_line_and_no_directory(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(dump_job(micro_job(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_ray.cli", "run", str(tmp_path / "job.yaml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: Ray does not start on this machine (")
    assert f"open files (ulimit -n: {FILES})" in line
    assert done.returncode == 1
    assert not (tmp_path / "studies").exists()
