"""Reading a study back: the tables agree with what was run, whatever state the study is in."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from study_builder import STEPS, build_study

from hybrid_ray.errors import StoreError
from hybrid_ray.report import load
from hybrid_ray.report.load import load_study
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.parquet import read_steps
from hybrid_ray.storage.study_store import StudyStore


def change(directory: Path, number: int, **values: object) -> None:
    """Edit one row of ``trials.jsonl``."""
    path = directory / "trials.jsonl"
    rows = read_jsonl(path)
    path.write_text("".join(json.dumps(row | values if row["number"] == number else row) + "\n" for row in rows))


def test_the_tables_of_a_real_study_agree_with_its_runs(micro_study: Path) -> None:
    study = load_study(micro_study)
    assert study.finished
    assert study.trials["state"].tolist() == ["COMPLETE"] * 3
    assert study.trials["params_prediction_horizon"].tolist() == [2, 5, 1]
    assert sorted(study.frontier["length"]) == [0.4, 0.55, 0.7, 0.85, 1.0, 1.1]
    assert study.baseline["steps"].tolist() == [40]
    assert sorted(study.confirmation["arm"].unique()) == ["baseline", "equal_steps", "hybrid", "placebo"]
    for number in study.trials["number"]:
        row, result, steps = study.trials.iloc[number], study.result(number), study.steps(number)
        assert row["loss"] == result.heldout["val"].loss == study.curve(number)["loss"].iloc[-1]
        assert row["time"] == pytest.approx(study.curve(number)["time"].iloc[-1], rel=1e-6)
        assert len(steps) == row["steps"]
        assert steps["predicted"].sum() == row["predicted_steps"]
        assert steps["step"].tolist() == list(range(1, 41))


def test_net_speedups_follow_from_the_frontier_table(tmp_path: Path) -> None:
    study = load_study(build_study(tmp_path / "study"))
    line = study.frontier[study.frontier["on_frontier"]].sort_values("loss")
    done = study.trials[study.trials["net_speedup"].notna()]
    needed = np.exp(np.interp(np.log(done["loss"]), np.log(line["loss"]), np.log(line["time"])))
    assert len(done) > 5
    assert done["net_speedup"].to_numpy() == pytest.approx(needed / done["time"])


def test_a_run_beaten_by_a_shorter_one_is_not_on_the_frontier(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    path = directory / "frontier" / "1.10" / "result.json"
    result = read_json(path)
    result["heldout"]["val"]["loss"] = 9.0
    path.write_text(json.dumps(result))
    frontier = load_study(directory).frontier.set_index("length")
    assert not frontier.loc[1.1, "on_frontier"]
    assert frontier["on_frontier"].sum() == 5


@pytest.mark.parametrize(
    "spoilt",
    [{"state": "PRUNED"}, {"state": "FAIL"}, {"diverged": 1}, {"inert": 1}, {"objective": None, "score": None}],
    ids=["stopped", "failed", "diverged", "inert", "no score"],
)
def test_best_is_never_a_trial_that_says_nothing(tmp_path: Path, spoilt: dict[str, object]) -> None:
    directory = build_study(tmp_path / "study")
    best = load_study(directory).best
    assert best is not None
    change(directory, int(best["number"]), **spoilt)
    second = load_study(directory).best
    assert second is not None
    assert second["number"] != best["number"]
    assert second["score"] < best["score"]


def test_best_goes_by_what_was_searched_not_by_score_alone(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    worst = load_study(directory).trials.query("state == 'COMPLETE' and inert == 0").nsmallest(1, "score").iloc[0]
    change(directory, int(worst["number"]), objective=99.0)
    assert load_study(directory).best["number"] == worst["number"]


def test_waiting_and_running_trials_come_from_the_optuna_journal(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=3, finished=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(directory / "optuna.journal"))))
    for _ in range(5):
        journal.ask({"confidence_threshold": optuna.distributions.FloatDistribution(0.1, 0.9)})
    journal.enqueue_trial({"confidence_threshold": 0.25})
    study = load_study(directory)
    assert not study.finished
    assert study.trials["state"].tolist() == ["COMPLETE", "COMPLETE", "COMPLETE", "RUNNING", "RUNNING", "WAITING"]
    assert study.trials["params_confidence_threshold"].iloc[-1] == 0.25
    assert study.trials["score"].isna().sum() == 3


def test_a_run_that_is_removed_while_its_study_is_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = build_study(tmp_path / "study", trials=3, finished=False)

    def removed_first(path: Path) -> object:
        if path.parent.name == "0.40":  # it is trained again
            shutil.rmtree(path.parent)
        return read_json(path)

    monkeypatch.setattr(load, "read_json", removed_first)
    assert sorted(load_study(directory).frontier["length"]) == [0.55, 0.7, 0.85, 1.0, 1.1]


def test_a_trial_that_ends_while_its_study_is_read_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = build_study(tmp_path / "study", trials=3, finished=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(directory / "optuna.journal"))))
    for _ in range(4):
        journal.ask()

    def ends_afterwards(path: Path) -> list[dict[str, object]]:
        rows = read_jsonl(path)
        if path.name == "trials.jsonl":
            monkeypatch.undo()
            StudyStore(directory).add_trial({**rows[0], "number": 3})
            journal.tell(3, 1.0)
        return rows

    monkeypatch.setattr(load, "read_jsonl", ends_afterwards)
    assert load_study(directory).trials["state"].tolist() == ["COMPLETE"] * 3 + ["RUNNING"]
    assert load_study(directory).trials["state"].tolist() == ["COMPLETE"] * 4


def test_the_newest_study_is_found_while_another_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "removed"):
        build_study(tmp_path / name, trials=1, confirm=False)
    touched = load._touched

    def removed_first(directory: Path) -> float:
        shutil.rmtree(tmp_path / "removed", ignore_errors=True)
        return touched(directory)

    monkeypatch.setattr(load, "_touched", removed_first)
    assert load_study(studies_dir=tmp_path).name == "here"


def test_a_study_that_has_just_begun_has_empty_tables(tmp_path: Path) -> None:
    whole = build_study(tmp_path / "whole")
    (tmp_path / "new").mkdir()
    shutil.copy(whole / "job.yaml", tmp_path / "new" / "job.yaml")
    StudyStore(tmp_path / "new").event("created")
    study = load_study(tmp_path / "new")
    assert study.best is None
    assert study.statistics is None
    assert study.curve("baseline").empty
    for table in (study.trials, study.baseline, study.frontier, study.confirmation):
        assert table.empty
    assert {"state", "score", "net_speedup"} <= set(study.trials.columns)


def test_steps_of_a_running_trial_are_those_written_so_far(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=2)
    path = directory / "trials" / "0001" / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:5000])
    path.with_name("result.json").unlink()
    steps = load_study(directory).steps(1)
    assert 0 < len(steps) < STEPS
    with pytest.raises(StoreError, match="has no steps"):
        load_study(directory).steps(77)


def test_steps_can_be_read_while_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = build_study(tmp_path / "study", trials=2)
    path = directory / "trials" / "0001" / "steps.jsonl"
    whole, result = path.read_bytes(), path.with_name("result.json").read_bytes()
    path.write_bytes(whole[:5000])
    path.with_name("result.json").unlink()

    def ends_afterwards(run: Path) -> list[dict[str, object]]:
        rows = read_steps(run)
        path.write_bytes(whole)
        path.with_name("result.json").write_bytes(result)
        return rows

    study = load_study(directory)
    monkeypatch.setattr(load, "read_steps", ends_afterwards)
    assert 0 < len(study.steps(1)) < STEPS
    assert len(study.steps(1)) == STEPS


def test_found_by_name_or_newest_and_otherwise_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="hybrid-ray run"):
        load_study(studies_dir=tmp_path)
    for age, name in enumerate(("old", "new", "older")):
        build_study(tmp_path / name, trials=1, confirm=False)
        stamp = {"old": 2000, "new": 3000, "older": 1000}[name] + age
        for file in ("job.yaml", "events.jsonl"):
            os.utime(tmp_path / name / file, (stamp, stamp))
    assert load_study(studies_dir=tmp_path).name == "new"
    assert load_study("old", studies_dir=tmp_path).name == "old"
    with pytest.raises(StoreError, match=r"other is not a study.*new, old, older"):
        load_study("other", studies_dir=tmp_path)


def test_a_damaged_study_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=2)
    (directory / "baseline" / "result.json").write_text('{"arm": "baseline"}')
    with pytest.raises(StoreError, match=r"baseline/result\.json is not the result of a run"):
        load_study(directory)
    (directory / "job.yaml").write_text("trian: 1\n")
    with pytest.raises(StoreError, match=r"job\.yaml cannot be used"):
        load_study(directory)
