"""Proposals that train the same weights as an earlier trial cost no training, and Optuna gets the same result."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from micro_jobs import micro_job
from optuna.trial import TrialState
from ray.tune.search import Searcher
from test_searcher import Rows, live

from hybrid_ray.config import JobConfig, SearchConfig
from hybrid_ray.evaluation.equal_settings import TrainedSettings
from hybrid_ray.objective import ranked
from hybrid_ray.ray_tune.optuna_storage import counted_trials, open_study, queue_settings
from hybrid_ray.ray_tune.search import Search
from hybrid_ray.ray_tune.searcher import MOST_EQUAL, OptunaSearcher, was_interrupted
from hybrid_ray.ray_tune.space import settings

FIVE = {"prediction_horizon": 5}
NEVER = {"no": {**FIVE, "correction_interval": 0}, "late": {**FIVE, "correction_interval": 7}}  # no micro-corrections
OTHER = {"other": {**FIVE, "correction_interval": 2}}


class Setup:
    """A study on disk with queued settings, and a searcher that recognises equal ones."""

    def __init__(self, directory: Path, queued: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.job: JobConfig = micro_job(directory, search=SearchConfig(sampler="random"))
        self.study, self.listener = open_study(directory, self.job), Rows()
        queue_settings(self.study, queued)
        trained = TrainedSettings(lambda params: settings(self.job, params))
        for row in rows:
            trained.add(row["number"], {name[7:]: value for name, value in row.items() if name.startswith("params_")})
        self.searcher = OptunaSearcher(
            self.study, ask, mode="score", listener=self.listener, trained=trained, rows=rows, stop_after_failures=9
        )

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        return self.listener.rows

    def suggest(self, trial_id: str) -> Any:
        return self.searcher.suggest(trial_id)


def ask(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "prediction_horizon": trial.suggest_int("prediction_horizon", 4, 5),
        "correction_interval": trial.suggest_int("correction_interval", 0, 8),
    }


@pytest.fixture
def setup(tmp_path: Path) -> Callable[..., Setup]:
    return lambda *arguments: Setup(tmp_path, *arguments)


@pytest.mark.parametrize("ending", ["finished", "stopped", "diverged"])
def test_an_equal_trial_is_not_trained_and_has_the_result_of_the_first(setup: Any, ending: str) -> None:
    made = setup({**NEVER, **OTHER})
    assert made.suggest("a")["number"] == 0
    live(made.searcher, "a", ending, 1.2)
    assert made.suggest("b")["params"] == OTHER["other"]  # the one between was never given to Tune
    first, equal = made.rows
    assert (equal["number"], equal["equal_to"], equal["preset"]) == (1, 0, "late")
    assert equal["params_correction_interval"] == 7
    assert {equal[name] == first[name] for name in ("score", "state", "end", "objective")} == {True}
    assert equal["started"] == equal["ended"]
    told, copied = made.study.trials[:2]
    assert (copied.state, copied.values, copied.intermediate_values, copied.constraints) == (
        told.state, told.values, told.intermediate_values, told.constraints,
    )  # fmt: skip
    assert counted_trials(made.rows) == 1
    assert [row["number"] for row in ranked(made.rows, "score")] == ([0] if ending == "finished" else [])


def test_the_equal_of_a_running_trial_waits_for_its_result(setup: Any) -> None:
    made = setup({**NEVER, **OTHER})
    made.suggest("a")
    assert made.suggest("b")["params"] == OTHER["other"]
    assert not made.rows
    assert made.study.trials[1].state is TrialState.RUNNING
    live(made.searcher, "a", "finished", 1.2)
    assert [(row["number"], row["equal_to"]) for row in made.rows] == [(0, None), (1, 0)]
    assert made.study.trials[1].value == pytest.approx(1.2)


@pytest.mark.parametrize("ending", ["raised", "oom", "the driver stops"])
def test_if_a_trial_fails_the_settings_of_its_equals_are_tried_again(setup: Any, ending: str) -> None:
    made = setup({**NEVER, **OTHER})
    made.suggest("a")
    made.suggest("b")
    if ending == "the driver stops":
        made.searcher.close("the driver was asked to stop")
        assert all(was_interrupted(row) for row in made.rows)
    else:
        live(made.searcher, "a", ending, 1.2)
        assert made.suggest("c")["params"] == NEVER["late"]
    assert was_interrupted(next(row for row in made.rows if row["number"] == 1))
    assert not any(row["equal_to"] is not None for row in made.rows)


def test_a_resumed_search_knows_the_trials_of_earlier_sessions(setup: Any) -> None:
    first = setup({"no": NEVER["no"]})
    first.suggest("a")
    live(first.searcher, "a", "finished", 1.2)
    again = setup({**NEVER, **OTHER}, first.rows)
    assert again.suggest("a")["params"] == OTHER["other"]
    assert [row["equal_to"] for row in again.rows] == [0]


def test_a_resumed_search_says_once_if_its_space_fails_for_earlier_trials(
    setup: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = setup({**NEVER, **OTHER})
    for trial in "ab":
        first.suggest(trial)
        live(first.searcher, trial, "finished", 1.2)

    def fails(trial: optuna.Trial, job: JobConfig) -> dict[str, Any]:
        raise KeyError("a knob of another day")

    study = SimpleNamespace(job=first.job, store=SimpleNamespace(trials=lambda: first.rows))
    unused = ("optuna_study", "trials", "concurrency", "nodes", "listener", "flag", "budget")
    rest: dict[str, Any] = dict.fromkeys(unused)
    spec = SimpleNamespace(directory=lambda number: tmp_path / str(number))
    search = Search(study=study, space=SimpleNamespace(ask=fails), spec=spec, **rest)  # type: ignore[arg-type]
    assert search._trained_settings().equal(OTHER["other"]) is None
    (said,) = caplog.messages
    assert said.startswith("2 earlier trials are not recognised")
    assert "trial 0 (KeyError: 'a knob of another day')" in said


def test_a_search_ends_once_its_space_has_nothing_new(setup: Any) -> None:
    """Horizon 4 or 5 with 9 intervals: 4 + 5 different runs."""
    made = setup({})
    trained = []
    while (asked := made.suggest(f"trial {len(trained)}")) != Searcher.FINISHED:
        live(made.searcher, f"trial {len(trained)}", "finished", 1.0)
        trained.append((asked["params"]["prediction_horizon"], asked["params"]["correction_interval"]))
    assert made.searcher.exhausted
    assert len(trained) == 9
    assert [row["equal_to"] is None for row in made.rows][-MOST_EQUAL:] == [False] * MOST_EQUAL
    assert counted_trials(made.rows) == 9
    assert all(trial.state is TrialState.COMPLETE for trial in made.study.trials)
