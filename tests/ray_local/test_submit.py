"""Commands for a cluster: what is refused before anything is sent, and what is said when something is missing."""

import hashlib
import math
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from free_ports import free_ports
from ray.job_submission import JobStatus

from hybrid_ray.cli import main
from hybrid_ray.cli.parser import build_parser
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.errors import ConfigError, HybridRayError, StudyLocked
from hybrid_ray.ray_tune.submission.dashboard import Dashboard
from hybrid_ray.ray_tune.submission.pack import pack
from hybrid_ray.ray_tune.submission.running import logs, stop
from hybrid_ray.ray_tune.submission.submit import Command, submit
from hybrid_ray.storage.lock import lock_directory


def send(job_file: Path, address: str, *, token: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Submit a study."""
    command = Command(name="run", target=str(job_file), overrides=overrides)
    return submit(command, dashboard=Dashboard(address=address, token=token))


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
        send(job_file, address, token="hush-hush")
    assert "secret" not in str(caught.value)
    assert "hush-hush" not in str(caught.value)
    dashboard = Dashboard(address=address)
    for asks in (lambda: logs("x", dashboard=dashboard), lambda: stop("x", dashboard=dashboard)):
        with pytest.raises(ConfigError, match=said):
            asks()


def test_plain_http_to_another_machine_needs_the_users_word_and_the_log_says_so(
    job_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def sends(address: str, headers: dict[str, str]) -> None:
        raise HybridRayError(f"sends to {address}")

    monkeypatch.setattr("hybrid_ray.ray_tune.submission.dashboard._client", sends)  # before it reaches the network
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush-hush")
    command = ["submit", str(job_file), "--address", "http://192.0.2.7:8265"]
    assert main(command) == 2
    assert not caplog.text
    assert main([*command, "--insecure"]) == 1
    assert "--insecure: the job with its token is sent unencrypted to http://192.0.2.7:8265" in caplog.text
    out = capsys.readouterr()
    assert "sends to http://192.0.2.7:8265" in out.err
    assert "hush-hush" not in caplog.text + out.out + out.err


@pytest.mark.parametrize(
    "words, said",
    [
        (["JOB", "--set", "studies_dir=studies"], "studies_dir is 'studies' but must be an absolute path"),
        (["run", "JOB", "--set", "studies_dir=studies"], "studies_dir is 'studies' but must be an absolute path"),
        (["compare", "JOB", "--out", "comparisons/x"], "--out is 'comparisons/x' but must be an absolute path"),
        (["train", "JOB", "--out", "runs"], "--out is 'runs' but must be an absolute path"),
        (["resume", "studies/x"], "the study is 'studies/x' but must be an absolute path"),
        (["extend", "studies/x", "--trials", "9"], "the study is 'studies/x' but must be an absolute path"),
        (["report", "/shared/x", "--module", "nothing.py"], "--module is 'nothing.py' but must be a Python file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_would_vanish_with_the_job_or_is_not_there_is_refused(
    job_file: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(job_file) if word == "JOB" else word for word in words]
    assert main(["submit", *words, "--address", "http://127.0.0.1:1"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_no_cluster_there_is_said_without_the_token_and_no_other_is_asked(
    job_file: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, other = free_ports(2)
    monkeypatch.setenv(variable, f"http://127.0.0.1:{other}")
    with pytest.raises(HybridRayError, match=f"no Ray cluster answers at .*: Failed to connect .*:{port}") as caught:
        send(job_file, f"http://127.0.0.1:{port}", token="hush-hush")
    assert "hush-hush" not in str(caught.value)
    assert os.environ[variable] == f"http://127.0.0.1:{other}"


@pytest.mark.parametrize(
    "words, sent",
    [
        (["JOB", "--set", "train.steps=70"], ["run", "job.yaml"]),
        (["JOB", "--set", "ladder.rungs={a: {}, b: {}}"], ["run", "job.yaml"]),
        (["compare", "JOB", "--out", "/shared/c"], ["compare", "job.yaml", "--out", "/shared/c"]),
        (["train", "JOB", "--out", "/s/t"], ["train", "job.yaml", "--arm", "hybrid", "--out", "/s/t"]),
        (["resume", "/shared/x", "--fork"], ["resume", "/shared/x", "--fork"]),
        (["extend", "/shared/x", "--trials", "9"], ["extend", "/shared/x", "--trials", "9"]),
        (["report", "/shared/x"], ["report", "/shared/x"]),
        (["rescore", "/shared/x", "--set", "seed=1"], ["rescore", "/shared/x", "--set", "seed=1"]),
    ],
    ids=lambda value: value[0],
)
def test_each_command_arrives_with_its_arguments(
    job_file: Path, words: list[str], sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = []

    def arrives(client: object, command: Sequence[str], *, folder: str | None) -> str:
        arrived.extend(command)
        if "job.yaml" in command:
            assert folder is not None
            assert read_job(Path(folder) / "job.yaml").resources.address == "auto"
        raise HybridRayError("sent")

    monkeypatch.setattr("hybrid_ray.ray_tune.submission.dashboard._client", lambda *_: None)
    monkeypatch.setattr("hybrid_ray.ray_tune.submission.submit.send", arrives)
    words = [str(job_file) if word == "JOB" else word for word in words]
    assert main(["submit", *words, "--address", "http://127.0.0.1:1"]) == 1
    assert arrived == ["-m", "hybrid_ray.cli", *sent]
    build_parser().parse_args(arrived[2:])  # what arrives is a command line of ours


def test_a_packed_study_is_whole_and_none_is_packed_while_a_driver_works_on_it(tmp_path: Path) -> None:
    study = tmp_path / "study"
    (study / ".ray").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is no study, ladder, comparison or run"):
        pack(study, tmp_path / "x.tar.gz")
    for name in ("job.yaml", ".ray/session", "trials/0/result.json"):
        (study / name).parent.mkdir(parents=True, exist_ok=True)
        (study / name).write_text(name)
    with lock_directory(study), pytest.raises(StudyLocked, match="is in use by process"):
        pack(study, tmp_path / "x.tar.gz")
    packed = pack(study, tmp_path / "x.tar.gz")
    assert packed["sha256"] == hashlib.sha256((tmp_path / "x.tar.gz").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "x.tar.gz") as tar:
        files = {Path(entry.name).as_posix() for entry in tar if entry.isfile()}
    assert files == {"job.yaml", "trials/0/result.json"}


@pytest.mark.parametrize("environment, seconds", [({}, 3), ({"RAY_JOB_STOP_WAIT_TIME_S": "1"}, 1)])
@pytest.mark.parametrize("killed", [True, False])
def test_stop_says_whether_a_job_ended_in_the_time_it_had(
    environment: dict[str, str],
    seconds: int,
    killed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Cluster:
        """What `stop` asks of Ray's client, of a job that was not sent by `submit`."""

        stopped = math.inf

        def get_job_info(self, name: str) -> SimpleNamespace:
            ended = time.monotonic() >= self.stopped + (seconds if killed else 0)
            status = JobStatus.STOPPED if ended else JobStatus.RUNNING
            return SimpleNamespace(status=status, runtime_env={"env_vars": environment})

        def get_job_logs(self, name: str) -> str:
            return ""

        def stop_job(self, name: str) -> None:
            self.stopped = time.monotonic()

    monkeypatch.setattr("hybrid_ray.ray_tune.submission.dashboard._client", lambda *_: Cluster())
    monkeypatch.setattr("hybrid_ray.ray_tune.submission.running.POLL_SECONDS", 0.05)
    assert main(["stop", "x", "--address", "http://127.0.0.1:1"]) == (1 if killed else 0)
    said = capsys.readouterr().err
    assert f"x was asked to stop; waiting up to {seconds} s" in said
    assert (f"x did not end within {seconds} s and was killed; its finished runs are kept" in said) == killed
