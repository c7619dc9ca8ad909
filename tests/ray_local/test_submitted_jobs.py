"""Commands submitted to a real Ray head on loopback, to their end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_ports
from ray_warnings import RAY_WARNINGS

from hybrid_ray.cli import main
from hybrid_ray.config import CompareConfig, FrontierConfig, JobConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ladder.results import load_ladder
from hybrid_ray.ray_tune.submission.dashboard import Dashboard
from hybrid_ray.ray_tune.submission.jobs import JOB_SETTINGS, job_log, send
from hybrid_ray.ray_tune.submission.running import logs
from hybrid_ray.ray_tune.submission.submit import Command, submit
from hybrid_ray.report.load import load_study
from hybrid_ray.storage.json_files import read_json

pytestmark = [pytest.mark.ray_local, pytest.mark.slow, *RAY_WARNINGS]


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A Ray head of our own on loopback that asks for the tests' token; its dashboard's address."""
    folder = tempfile.mkdtemp(prefix="hr-")
    port, dashboard, agent, agent_rpc, metrics = free_ports(5)
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--node-ip-address=127.0.0.1",
        "--num-cpus=2",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_rpc}",
        f"--metrics-export-port={metrics}",
        f"--temp-dir={folder}",
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # a cluster's own python is this one
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_up(address, process)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(address: str, process: subprocess.Popen[bytes]) -> None:
    token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
    asked = urllib.request.Request(f"{address}/api/version", headers=token)
    for _ in range(600):
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                assert "ray_version" in json.load(answer)
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the head did not come up in 2 minutes")


def test_a_submitted_study_is_stopped_resumed_and_fetched(
    head: str, job: JobConfig, job_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study, at = Path(job.studies_dir) / "micro", ["--address", head]
    (tmp_path / "own_sampler.py").write_text("from optuna.samplers import RandomSampler as Own\n")
    own, longer = ["--set", "search.sampler=own_sampler:Own"], ["--set", "train.steps=300"]
    assert main(["submit", str(job_file), *at, *own, *longer, "--detach"]) == 0
    name = capfd.readouterr().out.strip().splitlines()[-1]
    _wait_for((study / "baseline" / "result.json").exists, "the first run")
    assert main(["fetch", str(study), str(tmp_path / "here"), *at]) == 1
    assert "is in use by process" in capfd.readouterr().err
    assert main(["stop", name, *at]) == 0
    assert f"Continue with: hybrid-ray resume {study}" in capfd.readouterr().out
    assert main(["stop", name, *at]) == 0
    assert "has already ended: STOPPED" in capfd.readouterr().err
    assert main(["logs", name, *at]) == 143
    assert "Stopping: finished runs are kept" in capfd.readouterr().out

    assert not load_study(study).finished
    kept = {path: path.stat().st_mtime_ns for path in study.rglob("result.json")}
    assert main(["submit", "resume", str(study), *at, "--module", str(tmp_path / "own_sampler.py")]) == 0
    assert "(quick)" in capfd.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert load_study(study).finished

    assert main(["fetch", str(study), str(tmp_path / "here"), *at]) == 0
    assert _files(tmp_path / "here") == _files(study)
    assert load_study(tmp_path / "here").finished
    assert main(["fetch", str(study), str(tmp_path / "here"), *at]) == 2
    assert "exists and would be overwritten" in capfd.readouterr().err


def test_what_the_cluster_refuses_is_said_here(head: str, job_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = Command(name="run", target=str(job_file), overrides=["resources.cpus_per_worker=3"])
    ours, wrong = (Dashboard(address=head, token=token) for token in (os.environ["RAY_AUTH_TOKEN"], "wrong"))
    with pytest.raises(HybridRayError, match=r"refuses: .*; set RAY_AUTH_TOKEN to the cluster's token"):
        submit(command, dashboard=wrong)
    with pytest.raises(HybridRayError, match="has no job raysubmit_none: list its jobs with: ray job list"):
        logs("raysubmit_none", dashboard=ours)
    # Wrong where it runs, though not where it was sent from: the job's own exit code comes back.
    assert submit(command, dashboard=ours) == 2
    assert "need 3 but there are 2" in capfd.readouterr().out


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def test_stop_says_that_a_job_which_ignores_sigterm_was_killed(
    head: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at = ["--address", head]
    cluster = Dashboard(address=head, token=os.environ["RAY_AUTH_TOKEN"]).connect(then="")
    monkeypatch.setitem(JOB_SETTINGS, "RAY_JOB_STOP_WAIT_TIME_S", "2")
    name = send(cluster, ["-c", STUBBORN])
    _wait_for(lambda: "deaf" in job_log(cluster, name), "the job")
    assert main(["stop", name, *at]) == 1
    said = capfd.readouterr().err
    assert f"{name} was asked to stop; waiting up to 2 s" in said
    assert f"{name} did not end within 2 s and was killed; its finished runs are kept" in said
    assert main(["logs", name, *at]) == 143


def test_a_training_run_a_comparison_and_a_ladder_run_to_their_end_on_the_cluster(
    head: str, job: JobConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    at, job_file = ["--address", head], tmp_path / "job.yaml"
    job_file.write_text(
        dump_job(
            replace(
                job,
                train=replace(job.train, steps=30, evaluations=2),
                frontier=FrontierConfig(lengths=(0.4, 0.55, 0.7, 0.85, 1.0)),
                compare=CompareConfig(interim_analyses=(3,), arms=(), tune_baseline=False),
            )
        )
    )
    run, comparison, ladder = tmp_path / "run", tmp_path / "comparison", tmp_path / "studies/micro"
    assert main(["submit", "train", str(job_file), *at, "--out", str(run)]) == 0
    assert "held-out loss" in capfd.readouterr().out
    assert read_json(run / "result.json")["status"] == "finished"

    assert main(["submit", "compare", str(job_file), *at, "--out", str(comparison)]) == 0
    assert str(comparison / "report.html") in capfd.readouterr().out
    assert len(read_json(comparison / "comparison.json")["seeds"]) == 3
    assert main(["fetch", str(comparison), str(tmp_path / "here"), *at]) == 0
    assert _files(tmp_path / "here") == _files(comparison)

    rungs = ["--set", "ladder.rungs={small: {}}", "--set", "ladder.learning_rate=fixed"]
    assert main(["submit", "ladder", str(job_file), *at, *rungs]) == 0
    assert str(ladder / "report.html") in capfd.readouterr().out
    assert load_ladder(ladder).finished


def _wait_for(happened: Callable[[], bool], what: str) -> None:
    for _ in range(3000):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError(f"no sign of {what} in 5 minutes")


def _files(folder: Path) -> dict[str, bytes]:
    """Content by path, without what belongs to a running driver."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {
        "lock": b""
    }
