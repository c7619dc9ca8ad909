"""A search and a comparison on a model that hybrid_ray does not know, from the job file to the report."""

from pathlib import Path

import pytest
from ray_warnings import RAY_WARNINGS

from hybrid_ray.cli import main
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.report.load import load_study

pytestmark = [pytest.mark.ray_local, pytest.mark.usefixtures("local_ray"), *RAY_WARNINGS]
JOB = str(Path(__file__).parents[2] / "examples/own_model.yaml")
MICRO = (
    "train.steps=40", "train.evaluations=2", "train.calibration_steps=5", "hybrid.warmup_steps=5",
    "hybrid.full_steps=3", "search.trials=2", "search.startup_trials=2",
    "confirm.best=0", "compare.interim_analyses=[3]", "compare.arms=[]", "compare.tune_baseline=false",
)  # fmt: skip
SETTINGS = [part for setting in MICRO for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_search_ends_with_a_report_in_its_own_words(tmp_path: Path) -> None:
    assert main(["run", JOB, *SETTINGS]) == 0
    directory = tmp_path / "studies/own_model"
    page = (directory / "report.md").read_text().replace("\\", "")  # Markdown escapes
    assert "model own_model:SeriesTask" in page
    assert "squared error/point" in (directory / "report.html").read_text()
    study = load_study(directory)
    assert len(study.trials) == 2
    assert "class SeriesTask(Task)" in study.environment["sources"]["own_model"]
    assert read_job(directory / "job.yaml").folders == (str(Path(JOB).parent),)
    assert main(["extend", str(directory), "--trials", "3"]) == 0  # from another folder than the job's
    assert len(load_study(directory).trials) == 3


def test_a_comparison_is_in_its_own_words(tmp_path: Path) -> None:
    assert main(["compare", JOB, *SETTINGS, "--out", "out"]) == 0
    text = (tmp_path / "out/comparison.txt").read_text()
    assert "losses: squared error per point on the test split" in text
    assert "nominal steps of 16 examples" in (tmp_path / "out/report.md").read_text()
