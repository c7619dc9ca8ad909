"""The searcher with a simulated Tune: whatever happens to a trial, Optuna records it correctly."""

import random
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import pytest
from micro_jobs import micro_job
from optuna.trial import TrialState
from ray.tune.search import Searcher

from hybrid_ray.config import ObjectiveConfig, SearchConfig
from hybrid_ray.ray_tune.optuna_storage import counted_trials, open_study, queue_settings
from hybrid_ray.ray_tune.searcher import OptunaSearcher, was_interrupted
from hybrid_ray.ray_tune.space import load_space

ENDINGS = ("finished", "stopped", "diverged", "raised", "oom", "died silently")


class Rows:
    """Records the searcher's calls, and whether Optuna knew the outcome before the row was stored."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.started_numbers: list[int] = []
        self.given_up: Sequence[int] = ()

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None:
        self.started_numbers.append(number)

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        pass

    def ended(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def gave_up(self, numbers: Sequence[int]) -> None:
        self.given_up = numbers


def result(step: int, objective: float, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "objective": objective,
        "score": objective,
        "speedup": objective,
        "degradation": 0.01,
        "finished": 0,
        "diverged": 0,
        "predicted_share": 0.3,
        "inert": 0,
        "status": "stopped",
        "error": None,
        **changes,
    }


def live(searcher: OptunaSearcher, trial_id: str, ending: str, objective: float) -> None:
    """Act as Tune does with one trial until it ends."""
    for step in (10, 20):
        searcher.on_trial_result(trial_id, result(step, objective))
    match ending:
        case "finished":
            searcher.on_trial_complete(trial_id, result(30, objective, finished=1, status="finished", done=True))
        case "stopped":
            searcher.on_trial_complete(trial_id, result(30, objective, done=True))
        case "diverged":
            searcher.on_trial_complete(trial_id, result(30, -1e9, diverged=1, status="diverged", done=True))
        case "raised":
            searcher.on_trial_complete(trial_id, error=True)
        case "oom":
            said = {"step": 0, "objective": -1e9, "finished": 0, "status": "failed", "error": "oom: 3 GiB"}
            searcher.on_trial_complete(trial_id, {**said, "end": "out_of_memory", "done": True})
        case "died silently":
            searcher.on_trial_complete(trial_id, None)


def searcher_of(study: optuna.Study, job: Any, listener: Any, **options: Any) -> OptunaSearcher:
    space = load_space(job)
    return OptunaSearcher(
        study,
        lambda trial: space.ask(trial, job),
        mode=job.objective.mode,
        listener=listener,
        **{"stop_after_failures": 10_000, **options},
    )


def test_a_thousand_trials_are_told_as_what_they_were(tmp_path: Any) -> None:
    job = micro_job(tmp_path)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )  # saves 4 ms per write
    rows, chance = Rows(), random.Random(1)
    searcher = searcher_of(study, job, rows)
    running: list[str] = []
    expected: dict[int, str] = {}
    for index in range(1000):
        trial_id = f"trial-{index}"
        config = searcher.suggest(trial_id)
        running.append(trial_id)
        if len(running) == 4:
            ended = running.pop(chance.randrange(4))
            ending = chance.choice(ENDINGS)
            expected[int(ended.removeprefix("trial-"))] = ending
            live(searcher, ended, ending, chance.uniform(-2, 2))
        assert config["number"] == index
    searcher.close("the driver was asked to stop")

    by_ending = {
        "finished": TrialState.COMPLETE,
        "stopped": TrialState.PRUNED,
        "diverged": TrialState.PRUNED,
        "raised": TrialState.FAIL,
        "oom": TrialState.FAIL,
        "died silently": TrialState.FAIL,
    }
    trials = study.trials
    assert Counter(trial.state for trial in trials)[TrialState.RUNNING] == 0
    assert len(expected) == 997
    for number, ending in expected.items():
        assert trials[number].state is by_ending[ending], ending
        violated = trials[number].constraints.get("diverged", 0.0) > 0
        assert violated is (ending == "diverged")
    cut_off = [trials[row["number"]] for row in rows.rows if was_interrupted(row)]
    assert [trial.state for trial in cut_off] == [TrialState.FAIL] * 3
    waiting = [trial for trial in trials if trial.state is TrialState.WAITING]
    assert [trial.system_attrs["fixed_params"] for trial in waiting] == [trial.params for trial in cut_off]
    assert counted_trials(rows.rows) == 997
    assert {row["number"]: row["state"] for row in rows.rows} == {
        trial.number: trial.state.name for trial in trials if trial.state is not TrialState.WAITING
    }


@pytest.fixture
def micro(tmp_path: Any) -> tuple[optuna.Study, Any, Rows]:
    job = micro_job(tmp_path)
    return open_study(tmp_path, job), job, Rows()


def test_presets_are_the_first_trials_and_complete(micro: Any) -> None:
    study, job, rows = micro
    presets = load_space(job).presets
    queue_settings(study, presets)
    searcher = searcher_of(study, job, rows)
    asked = [searcher.suggest(str(index))["params"] for index in range(len(presets))]
    assert asked == [dict(values) for values in presets.values()]
    for index in range(len(presets)):
        live(searcher, str(index), "finished", 1.0)
    assert [row["preset"] for row in rows.rows] == list(presets)


def test_a_stopped_trial_keeps_its_last_value_and_a_finished_one_its_own(micro: Any) -> None:
    study, job, rows = micro
    searcher = searcher_of(study, job, rows)
    searcher.suggest("a")
    searcher.suggest("b")
    live(searcher, "a", "stopped", 0.7)
    live(searcher, "b", "finished", 1.3)
    assert study.trials[0].intermediate_values == {10: 0.7, 20: 0.7, 30: 0.7}
    assert study.trials[1].value == pytest.approx(1.3)
    assert study.best_trial.number == 1


def test_a_retried_trial_reports_a_step_twice_without_a_warning(micro: Any) -> None:
    study, job, rows = micro
    searcher = searcher_of(study, job, rows)
    searcher.suggest("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searcher.on_trial_result("a", result(10, 0.5))
        searcher.on_trial_result("a", result(10, 0.6))
    live(searcher, "a", "finished", 1.0)
    assert study.trials[0].intermediate_values[10] == 0.5


def test_pareto_tells_speedup_and_degradation(tmp_path: Any) -> None:
    job = micro_job(tmp_path, objective=ObjectiveConfig(mode="pareto"))
    study, rows = open_study(tmp_path, job), Rows()
    searcher = searcher_of(study, job, rows)
    for index, ending in enumerate([*ENDINGS, "finished"] * 3):  # enough trials for TPE to model the endings
        searcher.suggest(str(index))
        live(searcher, str(index), ending, 1.2)
    assert study.trials[0].values == [1.2, 0.01]
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert all(trial.state.is_finished() for trial in study.trials)


def test_tpe_keeps_away_from_where_trials_diverge(tmp_path: Any) -> None:
    job = micro_job(tmp_path, search=SearchConfig(startup_trials=10))
    study, rows = open_study(tmp_path, job), Rows()
    searcher = searcher_of(study, job, rows)
    below = []
    for index in range(60):
        params = searcher.suggest(str(index))["params"]
        low = params["confidence_threshold"] < 0.45
        below.append(low)
        live(searcher, str(index), "diverged" if low else "finished", 1.0)
    assert sum(below[20:]) / 40 < 0.35  # half of them without learning


def test_failures_in_a_row_end_the_search_and_one_success_resets_the_count(micro: Any) -> None:
    study, job, rows = micro
    searcher = searcher_of(study, job, rows, stop_after_failures=3)
    for index, ending in enumerate(["raised", "raised", "finished", "raised", "oom"]):
        searcher.suggest(str(index))
        live(searcher, str(index), ending, 1.0)
    for late in ("last", "late and good", "late"):
        searcher.suggest(late)
    assert not searcher.gave_up
    live(searcher, "last", "raised", 1.0)
    assert searcher.gave_up
    assert rows.given_up == (3, 4, 5)
    assert searcher.suggest("one more") == Searcher.FINISHED
    live(searcher, "late and good", "finished", 1.0)
    live(searcher, "late", "died silently", 1.0)
    assert searcher.gave_up
    assert rows.given_up == (3, 4, 5, 7)
    assert len(study.trials) == 8


def test_the_reason_of_a_failure_is_kept(micro: Any) -> None:
    study, job, rows = micro
    searcher = searcher_of(study, job, rows, reason=lambda number: f"ValueError in trial {number}")
    searcher.suggest("a")
    searcher.suggest("b")
    live(searcher, "a", "raised", 1.0)
    live(searcher, "b", "oom", 1.0)
    assert [row["error"] for row in rows.rows] == ["ValueError in trial 0", "oom: 3 GiB"]


def test_nothing_is_asked_when_nothing_may_start(micro: Any) -> None:
    study, job, rows = micro
    searcher = searcher_of(study, job, rows, may_start=lambda: False)
    assert searcher.suggest("a") == Searcher.FINISHED
    assert study.trials == []


def test_a_space_that_raises_leaves_no_running_trial(micro: Any) -> None:
    study, _, rows = micro

    def broken(trial: optuna.Trial) -> dict[str, Any]:
        raise ZeroDivisionError

    searcher = OptunaSearcher(study, broken, mode="score", listener=rows)
    with pytest.raises(ZeroDivisionError):
        searcher.suggest("a")
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
