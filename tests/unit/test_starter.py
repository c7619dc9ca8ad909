"""`hybrid-ray init`: what it writes runs, and it overwrites nothing."""

import sys
from pathlib import Path

import pytest

from hybrid_ray.cli import main
from hybrid_ray.version import __version__

FEW = ["train.steps=20", "train.evaluations=2", "train.calibration_steps=5", "hybrid.warmup_steps=4"]
SETTINGS = [part for setting in [*FEW, "hybrid.full_steps=3"] for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_job_it_writes_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert "hybrid-ray run my_job.yaml" in capsys.readouterr().out
    assert (
        main(["train", "my_job.yaml", *SETTINGS, "--set", "data.heldout_tokens=2048", "--set", "data.max_bytes=200000"])
        == 0
    )
    assert "nats per token" in capsys.readouterr().out


def test_the_task_it_writes_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "waves.yaml", "--task"]) == 0
    assert "factory: waves_task:MyTask" in Path("waves.yaml").read_text()
    assert main(["train", "waves.yaml", *SETTINGS]) == 0
    assert "squared error per point" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["kept.yaml"], "kept.yaml exists and is never overwritten"),
        (["new.yaml", "--task"], "new_task.py exists"),
        (["my-job.yaml", "--task"], "letters, digits and underscores"),
        (["job.txt"], "must end in .yaml"),
        (["nowhere/job.yaml"], "nowhere is not a folder"),
    ],
)
def test_it_overwrites_nothing_and_writes_all_or_nothing(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("kept.yaml", "new_task.py"):
        Path(name).write_text("mine")
    assert main(["init", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert {path.name: path.read_text() for path in Path().glob("*.*")} == {"kept.yaml": "mine", "new_task.py": "mine"}


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"hybrid-ray {__version__}\n"
