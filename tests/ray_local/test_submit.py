"""`submit`: what is refused before anything is sent, and a job run on a real Ray head on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.cli import main
from hybrid_ray.config import ConfirmConfig, JobConfig, SearchConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.ray_tune.submit import submit
from hybrid_ray.report.load import load_study


@pytest.fixture
def job(tmp_path: Path, shared_folder: Path) -> JobConfig:
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


@pytest.mark.parametrize(
    "address, said",
    [
        ("http://192.0.2.7:8265", "could read the token"),
        ("http://cluster.example:8265", "could read the token"),
        ("192.0.2.7:8265", "must be the URL of the dashboard"),
        ("ray://127.0.0.1:10001", "must be the URL of the dashboard"),
        ("https://me:secret@cluster.example", "user name or password"),
    ],
)
def test_an_unsafe_or_unusable_address_is_refused_before_anything_is_sent(
    job_file: Path, address: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        submit(job_file, address=address, token="hush-hush")
    assert "secret" not in str(caught.value)
    assert "hush-hush" not in str(caught.value)


def test_plain_http_to_another_machine_needs_the_users_word_and_the_log_says_so(
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def sends(address: str, token: str | None) -> None:
        raise HybridRayError(f"sends to {address}")

    monkeypatch.setattr("hybrid_ray.ray_tune.submit._client", sends)  # before it reaches the network
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush-hush")
    command = ["submit", str(job_file), "--address", "http://192.0.2.7:8265"]
    assert main(command) == 2
    assert not caplog.text
    assert main([*command, "--insecure"]) == 1
    assert "--insecure: the job with its token is sent unencrypted to http://192.0.2.7:8265" in caplog.text
    out = capsys.readouterr()
    assert "sends to http://192.0.2.7:8265" in out.err
    assert "hush-hush" not in caplog.text + out.out + out.err


def test_a_studies_folder_that_would_vanish_with_the_job_is_refused(job_file: Path) -> None:
    with pytest.raises(ConfigError, match="studies_dir is 'studies' but must be an absolute path"):
        submit(job_file, address="http://127.0.0.1:1", overrides=["studies_dir=studies"])


def test_no_cluster_there_is_said_without_the_token(job_file: Path) -> None:
    with pytest.raises(HybridRayError, match="no Ray cluster answers") as caught:
        submit(job_file, address=f"http://127.0.0.1:{_free_ports(1)[0]}", token="hush-hush")
    assert "hush-hush" not in str(caught.value)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@pytest.fixture
def head() -> Iterator[str]:
    """A Ray head of our own on loopback that asks for the tests' token; its dashboard's address."""
    folder = tempfile.mkdtemp(prefix="hr-")
    port, dashboard, agent, agent_rpc, metrics = _free_ports(5)
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


@pytest.mark.ray_local
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_submitted_job_runs_on_the_cluster_and_its_exit_code_is_ours(
    head: str, job: JobConfig, job_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    token = os.environ["RAY_AUTH_TOKEN"]
    with pytest.raises(HybridRayError, match=r"refuses: .*; set RAY_AUTH_TOKEN to the cluster's token"):
        submit(job_file, address=head, token="wrong")
    assert submit(job_file, address=head, token=token) == 0
    out = capfd.readouterr().out
    assert "trial 0 (quick)" in out
    study = load_study(Path(job.studies_dir) / "micro")
    assert study.finished
    assert study.job.resources.address == "auto"
    # Wrong where it runs, though not where it was sent from: the job's own exit code comes back.
    assert submit(job_file, address=head, token=token, overrides=["resources.cpus_per_worker=3"]) == 2
    assert "need 3 but there are 2" in capfd.readouterr().out
