"""The command line as a user meets it: exit codes, all problems at once, nothing started."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid_ray.cli import main
from hybrid_ray.doctor import examine

LOCAL = str(Path(__file__).parents[2] / "jobs/local.yaml")


def test_a_wrong_job_exits_2_lists_all_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", LOCAL, "--set", "train.stepz=9", "--set", "search.trials=0"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'train.steps'" in said
    assert "search.trials is 0 but must be at least 1" in said.replace("trials.trials", "trials")
    assert "Nothing was started" in said
    assert not list(tmp_path.iterdir())


def test_resources_that_are_not_there_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", LOCAL, "--set", "resources.cpus_per_worker=4096"]) == 2
    assert "4096" in capsys.readouterr().err


def test_plan_says_runs_time_and_memory_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", LOCAL]) == 0
    said = capsys.readouterr().out
    for part in ("16", "total", "memory", "ms per real step"):
        assert part in said
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize("command", ["resume", "report"])
def test_what_is_not_a_study_is_said_so(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "nothing")]) in (1, 2)
    assert "nothing" in capsys.readouterr().err


def test_an_unknown_command_exits_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tuna"])
    assert caught.value.code == 2


def test_doctor_finds_this_environment_fit_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert all(finding.text for finding in examine())


def test_output_that_nobody_reads_is_no_traceback() -> None:
    program = "import sys; from hybrid_ray.cli import main; sys.exit(main(['schema', '--markdown']))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # type: ignore[union-attr]  # as `head` does
        assert process.stderr.read() == b""  # type: ignore[union-attr]
        assert process.wait() == 1


def test_ctrl_c_while_a_cluster_does_not_answer_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-m", "hybrid_ray.cli", "stop", "x", "--address"]
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asks = subprocess.Popen([*command, address], stderr=subprocess.PIPE, text=True)
        silent.settimeout(120)
        with silent.accept()[0]:
            asks.send_signal(signal.SIGINT)
            said = asks.communicate(timeout=60)[1]
    assert asks.returncode == 130
    assert said.strip() == "Interrupted."
