"""Whole studies of a micro model on a real local Ray."""

import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import BudgetConfig, ConfirmConfig, JobConfig, ObjectiveConfig, SearchConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.optuna_storage import open_study
from hybrid_ray.report.load import load_study
from hybrid_ray.study.pipeline import extend_study, resume_study, run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.usefixtures("local_ray"),
    # Ray's own, in the driver's process: sockets and files of processes that are gone, notices of what will change
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def job(tmp_path: Path, shared_folder: Path) -> JobConfig:
    """The baselines are cached for all tests; studies are each test's own."""
    return replace(micro_job(shared_folder), studies_dir=str(tmp_path))


@pytest.mark.slow
def test_a_whole_study_then_more_trials(job: JobConfig) -> None:
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

    again = extend_study(outcome.directory, trials=6)
    more = load_study(again.directory)
    assert len(more.trials) == 6
    assert more.statistics is not None
    assert {one["trial"] for one in study.statistics["candidates"]} <= {
        one["trial"] for one in more.statistics["candidates"]
    }
    assert more.trials.iloc[:4]["ended"].equals(study.trials["ended"])
    assert len(more.events[more.events["event"] == "created"]) == 1
    with pytest.raises(ConfigError, match="already has 6 trials"):
        extend_study(outcome.directory, trials=6)


def space_of(*horizons: int) -> types.ModuleType:
    """A space whose presets have these horizons. 0 can't be, and is found out by the trial itself."""
    module = types.ModuleType("tune_spaces.these")
    module.space = lambda trial, job: {"prediction_horizon": trial.suggest_int("prediction_horizon", 0, 9)}  # type: ignore[attr-defined]
    module.presets = lambda job: {  # type: ignore[attr-defined]
        f"preset {index}": {"prediction_horizon": horizon} for index, horizon in enumerate(horizons)
    }
    return module


def searched(job: JobConfig, **search: Any) -> JobConfig:
    return replace(
        job,
        search=replace(job.search, space="these", max_failures=0, scheduler="none", **search),
        confirm=ConfirmConfig(best=0),
    )


def test_a_trial_that_raises_fails_alone_with_several_objectives_too(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tune_spaces.these", space_of(4, 0, 5, 6))
    outcome = run_study(replace(searched(job), objective=ObjectiveConfig(mode="pareto", max_degradation=100.0)))
    trials = load_study(outcome.directory).trials
    assert outcome.status == "finished"
    assert list(trials["state"]) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "prediction_horizon is 0 but must be at least 1" in trials["error"][1]
    assert "Traceback" in (outcome.directory / "trials" / "0001" / "error.txt").read_text()
    study = load_study(outcome.directory)
    assert outcome.text.count("on the front of speedup and degradation") == 1
    told = open_study(outcome.directory, study.job)
    assert {trial.number for trial in told.best_trials} == set(study.front["number"])
    again = extend_study(outcome.directory, trials=5)
    assert len(load_study(again.directory).trials) == 5


def test_a_search_for_net_speedup_tells_it_and_leads_with_it(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tune_spaces.these", space_of(4, 6))
    wanted = replace(searched(job, trials=2), objective=ObjectiveConfig(mode="net", max_degradation=100.0))
    outcome = run_study(wanted)
    study = load_study(outcome.directory)
    told = open_study(outcome.directory, study.job)
    assert [trial.value for trial in told.trials] == study.trials["objective"].tolist()
    assert study.trials["objective"].max() == study.winner["objective"]
    heading = list(told.trials[0].intermediate_values.values())
    assert len(heading) == 4
    assert heading[-1] == told.trials[0].value
    assert "net speedup" in outcome.text.split("score")[0]


def test_when_every_trial_fails_the_search_ends_with_advice(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tune_spaces.these", space_of(*[0] * 1))
    outcome = run_study(searched(job, trials=50, stop_after_failures=1))
    assert outcome.status == "failed"
    assert "1 trials failed in a row" in outcome.text
    assert "error.txt" in outcome.text
    assert len(load_study(outcome.directory).trials) < 5


def test_a_budget_lets_nothing_new_start_and_still_reports(job: JobConfig) -> None:
    outcome = run_study(replace(job, budget=BudgetConfig(minutes=0.1), search=SearchConfig(trials=500)))
    study = load_study(outcome.directory)
    while study.best is None:  # where 6 s were too short for the first trial that predicts
        outcome = resume_study(outcome.directory)
        study = load_study(outcome.directory)
    assert outcome.status == "finished"
    ended = study.trials["state"].isin(["COMPLETE", "PRUNED"]).sum()
    assert f"Unfinished ({ended} of 500 trials so far)" in outcome.text
    assert "the budget of 0.1 minutes is used up" in outcome.text
    assert f"hybrid-ray resume {outcome.directory}" in outcome.text
    assert not study.finished
    assert 0 < len(study.trials) < 500
    assert "RUNNING" not in set(study.trials["state"])
    assert study.statistics is None
    assert (outcome.directory / "report.md").exists()

    forked = resume_study(outcome.directory, fork=True)
    assert forked.directory.name == "micro-2"
    first = open_study(forked.directory, study.job).trials[0].user_attrs["preset"]
    assert first == f"from trial {study.best['number']}"
