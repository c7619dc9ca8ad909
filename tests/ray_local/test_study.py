"""Whole studies of a micro model on a real local Ray."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import BudgetConfig, ConfirmConfig, JobConfig, ObjectiveConfig, SearchConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.optuna_storage import open_study
from hybrid_ray.report.load import load_study
from hybrid_ray.study.pipeline import extend_study, resume_study, run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]


@pytest.fixture
def job(tmp_path: Path, shared_folder: Path) -> JobConfig:
    """The baselines are cached for all tests; studies are each test's own."""
    return replace(micro_job(shared_folder), studies_dir=str(tmp_path))


@pytest.mark.slow
def test_a_whole_study_then_more_trials_then_moved_to_another_folder(job: JobConfig) -> None:
    outcome = run_study(job)
    study = load_study(outcome.directory)
    assert outcome.status == "finished"
    assert study.finished
    assert len(study.trials) == 4
    assert list(study.trials["preset"]) == ["quick", "conservative", "aggressive", "short_cycles"]
    assert set(study.trials["state"]) <= {"COMPLETE", "PRUNED"}
    finished = study.trials[study.trials["state"] == "COMPLETE"]
    assert (finished["steps"] == 60).all()
    assert finished["score"].notna().all()
    assert len(study.frontier) == 6
    assert len(study.baseline) == 1
    assert study.statistics is not None
    assert {row["run"].split("/")[1] for _, row in study.confirmation.iterrows()} == {
        "baseline",
        str(study.statistics["candidates"][0]["trial"]),
    }
    assert (outcome.directory / "report.html").stat().st_size > 10_000
    assert "net speedup" in outcome.text
    assert not (outcome.directory / ".ray").exists()
    assert study.events["event"].iloc[-1] == "finished"
    assert study.events["time"].iloc[-1] >= (outcome.directory / "report.html").stat().st_mtime

    again = extend_study(outcome.directory, trials=6)
    more = load_study(again.directory)
    assert len(more.trained) == 6
    assert more.statistics is not None
    assert {one["trial"] for one in study.statistics["candidates"]} <= {
        one["trial"] for one in more.statistics["candidates"]
    }
    assert more.trials.iloc[:4]["ended"].equals(study.trials["ended"])
    assert len(more.events[more.events["event"] == "created"]) == 1
    with pytest.raises(ConfigError, match="already has 6 trials"):
        extend_study(outcome.directory, trials=6)

    runs = [path.relative_to(again.directory) for path in again.directory.rglob("result.json")]
    before = {run: (again.directory / run).read_bytes() for run in runs}
    moved = again.directory.with_name("moved")
    again.directory.rename(moved)
    resumed = resume_study(moved)
    assert resumed.text.splitlines()[0] == again.text.splitlines()[0]
    assert {run: (moved / run).read_bytes() for run in before} == before
    assert load_study(moved).trials.equals(more.trials)


def space_of(*horizons: int) -> types.ModuleType:
    """A space whose presets have these horizons. Below 1 they can't be, which the trial itself finds out."""
    module = types.ModuleType("tune_spaces.these")
    module.space = lambda trial, job: {"prediction_horizon": trial.suggest_int("prediction_horizon", -2, 9)}  # type: ignore[attr-defined]
    module.presets = lambda job: {  # type: ignore[attr-defined]
        f"preset {index}": {"prediction_horizon": horizon} for index, horizon in enumerate(horizons)
    }
    return module


def test_a_trial_that_raises_fails_alone_and_several_in_a_row_end_the_search_with_advice(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several objectives. One trial at a time, so that the last two fail in a row."""
    monkeypatch.setitem(sys.modules, "tune_spaces.these", space_of(4, 0, 5, 6, -1, -2))
    outcome = run_study(
        replace(
            job,
            search=replace(
                job.search, space="these", max_failures=0, scheduler="none", trials=50, stop_after_failures=2
            ),
            objective=ObjectiveConfig(mode="pareto", max_degradation=100.0),
            confirm=ConfirmConfig(best=0),
            resources=replace(job.resources, max_concurrent=1),
        )
    )
    study = load_study(outcome.directory)
    assert list(study.trials["state"]) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    assert "prediction_horizon is 0 but must be at least 1" in study.trials["error"][1]
    assert "Traceback" in (outcome.directory / "trials" / "0001" / "error.txt").read_text()
    told = open_study(outcome.directory, study.job)
    assert {trial.number for trial in told.best_trials} == set(study.front["number"])
    assert outcome.text.count("on the front of speedup and degradation") == 1
    assert outcome.status == "failed"
    assert "2 trials failed in a row" in outcome.text
    assert "error.txt" in outcome.text


def test_a_budget_lets_nothing_new_start_and_still_reports(job: JobConfig) -> None:
    outcome = run_study(replace(job, budget=BudgetConfig(minutes=0.1), search=SearchConfig(trials=500)))
    study = load_study(outcome.directory)
    while study.best is None:  # where 6 s were too short for the first trial that predicts
        outcome = resume_study(outcome.directory)
        study = load_study(outcome.directory)
    assert outcome.status == "finished"
    ended = study.trained["state"].isin(["COMPLETE", "PRUNED"]).sum()
    assert f"Unfinished ({ended} of 500 trials so far)" in outcome.text
    assert "the budget of 0.1 minutes is used up" in outcome.text
    assert f"hybrid-ray resume {outcome.directory}" in outcome.text
    assert not study.finished
    assert 0 < len(study.trained) < 500
    assert "RUNNING" not in set(study.trials["state"])
    assert study.statistics is None
    assert (outcome.directory / "report.md").exists()

    forked = resume_study(outcome.directory, fork=True)
    assert forked.directory.name == "micro-2"
    first = open_study(forked.directory, study.job).trials[0].user_attrs["preset"]
    assert first == f"from trial {study.best['number']}"
