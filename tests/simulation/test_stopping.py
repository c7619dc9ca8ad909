"""A driver hears a signal, and a budget that cannot limit anything is refused."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import BudgetConfig, ResourcesConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.study.pipeline import run_study
from hybrid_ray.study.stopping import StopFlag, Stopped, check_budget


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_hears_a_signal_after_ray_has_put_its_handlers_and_gives_the_handlers_back(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with StopFlag() as flag:
        signal.signal(number, signal.SIG_IGN)  # as Ray puts its own
        flag.listen()
        flag.raise_if_set()
        signal.raise_signal(number)
        assert flag
        with pytest.raises(Stopped, match="a signal asked to stop"):
            flag.raise_if_set()
    assert signal.getsignal(number) is before
    assert capfd.readouterr().err == "Stopping: finished runs are kept. A second signal ends this at once.\n"


def test_a_second_signal_ends_a_driver_at_once() -> None:
    twice = "with StopFlag(): signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGTERM)"
    imports = "import signal; from hybrid_ray.study.stopping import StopFlag"
    command, paths = [sys.executable, "-c", f"{imports}\n{twice}"], {"PYTHONPATH": ":".join(sys.path)}
    driver = subprocess.run(command, env=paths, check=False)
    assert driver.returncode == -signal.SIGTERM


def test_gpu_hours_need_a_gpu(tmp_path: Path) -> None:
    job = micro_job(tmp_path, budget=BudgetConfig(gpu_hours=2.0), resources=ResourcesConfig(gpus_per_worker=0.0))
    with pytest.raises(ConfigError, match=r"gpu_hours is 2 but the runs use no GPU.*budget\.minutes"):
        run_study(job)
    assert not (tmp_path / "studies").exists()
    check_budget(replace(job, resources=ResourcesConfig(gpus_per_worker=0.5)))
    check_budget(replace(job, budget=BudgetConfig(minutes=5.0)))
