"""A driver that is killed or asked to stop in the middle of a search, and a second one beside it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from micro_jobs import micro_job

import hybrid_ray.study.pipeline  # noqa: F401  its imports take seconds: before a clock runs
from hybrid_ray.cli import main
from hybrid_ray.config import ConfirmConfig, JobConfig, ObjectiveConfig, SearchConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.report.load import load_study
from hybrid_ray.run_result import was_trained
from hybrid_ray.storage.jsonl import read_jsonl

pytestmark = [pytest.mark.ray_local, pytest.mark.slow]

TRIALS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baselines are cached here for all tests of this file."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture
def job(folder: Path, tmp_path: Path) -> JobConfig:
    return micro_job(
        folder,
        studies_dir=str(tmp_path),
        train=TrainConfig(
            steps=200, batch_size=4, sequence_length=16, evaluations=8, calibration_steps=5, learning_rate=1e-2
        ),
        search=SearchConfig(trials=TRIALS, scheduler="none"),
        objective=ObjectiveConfig(max_degradation=100.0),  # so that every trial that is let alone is COMPLETE
        confirm=ConfirmConfig(best=0),
    )


@pytest.fixture
def driver(job: JobConfig, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `hybrid-ray` in a process of its own. What it started is ended by process id, group by group."""
    (tmp_path / "job.yaml").write_text(dump_job(job))
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hybrid_ray.cli", *arguments],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def complete(study: Path) -> list[int]:
    """The finished trials that count: settings that equal an earlier trial's may come up at any time after a resume."""
    rows = read_jsonl(study / "trials.jsonl")
    return [row["number"] for row in rows if row["state"] == "COMPLETE" and was_trained(row)]


def wait_for_trials(study: Path, number: int, *, seconds: int = 240) -> None:
    """Until so many trials have finished."""
    for _ in range(10 * seconds):
        if len(complete(study)) >= number:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {number} trials after {seconds} seconds")


def test_a_killed_driver_is_resumed_and_nothing_finished_is_lost(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    study = tmp_path / "micro"
    first = driver("run", "job.yaml")
    wait_for_trials(study, 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = load_study(study)
    done = before.trained[before.trained["state"] == "COMPLETE"]
    assert 2 <= len(done) < TRIALS
    assert (before.trials["state"] == "RUNNING").any()

    second = driver("resume", str(study))
    said, _ = second.communicate(timeout=180)
    assert second.returncode == 0, said
    after = load_study(study)
    assert after.finished
    complete = after.trained[after.trained["state"] == "COMPLETE"]
    assert len(complete) == TRIALS
    assert complete["ended"].head(len(done)).tolist() == done["ended"].tolist()
    interrupted = after.trials[after.trials["state"] == "FAIL"]
    assert len(interrupted) == (before.trials["state"] == "RUNNING").sum()
    assert interrupted["error"].str.startswith("interrupted").all()
    assert not set(after.trials["state"]) & {"RUNNING", "WAITING"}
    # The settings of the half-done trials were tried again, the presets among them under their names.
    assert sorted(complete["preset"].dropna()) == ["aggressive", "conservative", "quick", "short_cycles"]


def test_a_driver_asked_to_stop_says_143_tells_its_trials_and_refuses_a_second_one(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "micro"
    first = driver("run", "job.yaml", "--set", "search.trials=50")
    wait_for_trials(study, 1)
    assert main(["resume", str(study)]) == 1
    assert f"is in use by process {first.pid}" in capsys.readouterr().err

    os.kill(first.pid, signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 143, said
    assert said.index("Stopping: finished runs are kept") < said.index(f"hybrid-ray resume {study}")
    stopped = load_study(study)
    assert not stopped.finished
    assert (stopped.trials["state"] == "COMPLETE").any()
    assert "RUNNING" not in set(stopped.trials["state"])
    assert stopped.events["event"].iloc[-1] == "stopped"


def kill_child(pid: int, name: str) -> None:
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # another child that has just ended
            if child.name() == name:
                return child.kill()
    raise AssertionError(f"process {pid} has no child {name}")


def test_when_a_part_of_ray_is_killed_the_command_ends_and_nothing_finished_is_lost(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # by default Ray waits for a minute
    study, command = tmp_path / "micro", ("run", "job.yaml", "--set", "search.trials=8")
    done: list[int] = []
    for part in ("gcs_server", "raylet"):
        session = driver(*command)
        wait_for_trials(study, len(done) + 1)
        kill_child(session.pid, part)
        said, _ = session.communicate(timeout=300)
        assert session.returncode == 1, said
        assert set(done) < set(complete(study))
        done = complete(study)
        command = ("resume", str(study))

    last = driver(*command)
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    assert len(complete(study)) == 8
    assert set(done) <= set(complete(study))


def test_resources_that_are_not_there_start_nothing(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = driver("run", "job.yaml", "--set", "resources.cpus_per_worker=4096")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "need 4096 but there are" in said
    assert not (tmp_path / "micro").exists()
