"""What `examples/` shows does what it says, from any folder."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from hybrid_ray.cli import main
from hybrid_ray.config import JobConfig, TaskConfig
from hybrid_ray.ray_tune.submission.submit import on_the_cluster, take_along

EXAMPLES = Path(__file__).parents[2] / "examples"
JOB = str(EXAMPLES / "own_model.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_model_of_ones_own_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", JOB]) == 0
    said = capsys.readouterr().out
    assert "estimated from a timed gradient" in said
    assert "memory of one worker" in said


def test_a_model_of_ones_own_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", JOB, "--set", "train.steps=100", "--set", "hybrid.warmup_steps=20", "--out", "out"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"held-out loss (\S+) squared error per point \(absolute error \S+\)", said)
    assert found is not None, said
    assert float(found[1]) < 0.1  # the series' own variance is 1


def test_a_misspelt_option_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", JOB, "--set", "task.options={widht: 3}"]) == 2
    assert (
        "task.options.widht is not an option of own_model:SeriesTask: did you mean 'width'?" in capsys.readouterr().err
    )


def test_its_file_travels_with_a_submitted_job(tmp_path: Path) -> None:
    job = JobConfig(task=TaskConfig(factory="own_model:SeriesTask"), folders=(str(EXAMPLES),))
    take_along(job, tmp_path)
    assert (tmp_path / "own_model.py").read_text() == (EXAMPLES / "own_model.py").read_text()
    assert on_the_cluster(job).folders == ()


def test_the_trainer_in_a_loop_of_ones_own_resumes_to_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "trainer_in_a_loop.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"^hybrid .* predictions \(warmup \d+%, full \d+%, predict [1-9]\d*%, correct \d+%\)$", said, re.M)
    assert re.search(r"^plain .* 800 gradients for 800 steps, 0 predictions", said, re.M)
    assert said.endswith("the resumed run ended with the same bits: yes\n")


PREDICTOR = str(EXAMPLES / "own_predictor.yaml")


def test_a_predictor_of_ones_own_predicts_and_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--set", "train.steps=120", "--set", "hybrid.warmup_steps=20", "--set", "data.max_bytes=100000"]
    assert main(["train", PREDICTOR, *quick, "--out", "out"]) == 0
    found = re.search(r"(\d+)% of the steps predicted", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) > 10


@pytest.mark.parametrize(
    "change, part",
    [
        ("memry=1", "hybrid.predictor.memry is not an option of own_predictor:ShortAverage: did you mean 'memory'?"),
        ("gain=much", "hybrid.predictor.gain is 'much' but must be a number"),
        ("name=own_predictor:Options", "is not a subclass of hybrid_ray.Predictor"),
        ("name=own_predictor:Lost", "own_predictor has no Lost"),
        ("name=own_predicter:Lost", "there is no module own_predicter"),
    ],
)
def test_what_is_wrong_with_a_predictor_is_one_sentence(
    change: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", PREDICTOR, "--set", f"hybrid.predictor.{change}"]) == 2
    assert part in capsys.readouterr().err
