"""A finished study measured by another objective: its numbers, what a search did that stays done, and the files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_builder import build_study

from hybrid_ray.cli import main
from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.objective import score
from hybrid_ray.report.headline import headline
from hybrid_ray.report.load import load_study
from hybrid_ray.report.study_page import write_report
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.rescore import rescore, rescored_trials


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """16 trials in every state; the losses of the best are beyond the tolerance."""
    return build_study(tmp_path / "studies" / "study")


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rows_of(directory: Path) -> dict[int, dict[str, Any]]:
    return {row["number"]: row for row in read_jsonl(directory / "trials.jsonl")}


def test_the_same_objective_gives_the_same_numbers(micro_study: Path) -> None:
    study = load_study(micro_study)
    assert list(rescored_trials(study, study.job.objective).rows) == read_jsonl(micro_study / "trials.jsonl")


def test_another_weight_changes_scores_and_nothing_else(study: Path) -> None:
    before = files(study)
    place = rescore(study, ["objective.penalty_weight=5"])
    assert place == study / "rescored" / "score-penalty_weight-5"
    assert {name: content for name, content in files(study).items() if "/rescored/" not in name} == before
    old, new = rows_of(study), rows_of(place)
    assert list(new) == list(old)
    for number, row in new.items():
        if row["state"] != "COMPLETE":
            continue
        by_hand = row["speedup"] - 5 * max(0.0, row["degradation"] - 0.02)
        assert row["score"] == row["objective"] == pytest.approx(by_hand)
        assert row["score"] >= old[number]["score"]
        for name in ("state", "loss", "time", "net_speedup", "params_prediction_horizon", "preset"):
            assert row[name] == pytest.approx(old[number][name])
    assert any(row["score"] > old[number]["score"] + 0.1 for number, row in new.items() if row["state"] == "COMPLETE")


def test_net_speedup_of_stored_trials_without_training(study: Path) -> None:
    new = load_study(rescore(study, ["objective.mode=net"]))
    done = new.trials[new.trials["state"] == "COMPLETE"]
    assert done["objective"].tolist() == done["net_speedup"].tolist()
    assert new.best["net_speedup"] == done.loc[done["inert"] != 1, "net_speedup"].max()
    assert new.name == "study/rescored/net"
    assert not new.steps(0).empty
    assert len(new.frontier) == 6
    assert new.finished


def limit(study: Path, **objective: float) -> tuple[Any, Any]:
    before = load_study(study)
    return before, rescored_trials(before, replace(before.job.objective, **objective))


def test_a_tighter_limit_gives_up_finished_trials_where_they_passed_it(study: Path) -> None:
    before, found = limit(study, max_degradation=0.02)
    assert found.diverged_now
    for number in found.diverged_now:
        row = next(row for row in found.rows if row["number"] == number)
        curve, base = before.curve(number).set_index("step"), before.curve("baseline").set_index("step")
        worse = curve["loss"] / base["loss"] - 1
        assert (row["state"], row["diverged"], row["net_speedup"]) == ("PRUNED", 1, None)
        at = list(worse.index).index(row["steps"])
        assert (worse.iloc[at - 1 : at + 1] > 0.02).all()
        assert row["loss"] == curve["loss"].iloc[at]
    assert not found.stopped_now


def test_a_wider_limit_cannot_make_a_trial_go_on(study: Path) -> None:
    """Trials 9 and 2 were given up; 9 by losses far off, 2 by a loss that was not a number."""
    for number, losses, error in ((9, [9.0, 9.5], None), (2, [2.0], "loss is nan")):
        path = study / "trials" / f"{number:04d}" / "result.json"
        result = read_json(path)
        result["curve"] = [{**point, "loss": loss} for point, loss in zip(result["curve"], losses, strict=False)]
        last = result["curve"][-1]
        result |= {"status": "diverged", "error": error, "heldout": {}}
        result["phase_seconds"] = {"full": last["train_seconds"]}
        result["replay"]["phases"] = "F" * last["real_steps"] + "P" * (last["step"] - last["real_steps"])
        path.write_text(json.dumps(result))
    store = StudyStore(study)
    store.amend_trials({n: {"state": "PRUNED", "diverged": 1, "status": "diverged"} for n in (2, 9)})
    store.amend_trials({2: {"error": "loss is nan"}})
    _, found = limit(study, max_degradation=1000.0)
    rows = {row["number"]: row for row in found.rows}
    assert found.stopped_now == (9,)
    assert (rows[9]["state"], rows[9]["diverged"], rows[9]["loss"]) == ("PRUNED", 0, 9.5)
    assert (rows[2]["state"], rows[2]["diverged"], rows[2]["error"]) == ("PRUNED", 1, "loss is nan")
    report = (rescore(study, ["objective.max_degradation=1000"]) / "report.md").read_text().replace("\\", "")
    assert "trial 9 did not diverge, but the old limit ended it: it counts as stopped early" in report


def test_a_trial_stopped_early_stays_stopped_and_is_measured_where_it_was(study: Path) -> None:
    row, was = rows_of(rescore(study, ["objective.tolerance=0.5"]))[4], rows_of(study)[4]
    assert (row["state"], row["steps"], row["loss"]) == ("PRUNED", was["steps"], was["loss"])
    assert row["score"] == pytest.approx(row["speedup"])


@pytest.mark.parametrize("verdict, kind", [("no gain shown", "not confirmed"), ("real gain", "gain")])
def test_a_new_best_is_told_as_not_confirmed(tmp_path: Path, verdict: str, kind: str) -> None:
    study = build_study(tmp_path / "study", net=1.1)
    statistics = read_json(study / "confirmation.json")
    for one in statistics["candidates"]:
        one["verdict"] = verdict
    (study / "confirmation.json").write_text(json.dumps(statistics))
    place = rescore(study, ["objective.mode=net"])
    after = load_study(place)
    best = int(after.best["number"])
    assert best not in {one["trial"] for one in statistics["candidates"]}
    found = headline(after)
    assert found.kind == kind
    assert (
        f"trial {best} did not" in found.text if kind == "not confirmed" else f"(trial {best}, not conf" in found.text
    )
    for name in ("report.md", "report.html"):
        text = " ".join((place / name).read_text().replace("\\", "").split())
        assert "mode score to net" in text
        assert "The old objective guided the search" in text
        assert f"hybrid-ray rescore {study.parent.name}/{study.name} --set objective.mode=net" in text


def test_only_the_objective_can_be_changed_and_every_problem_is_listed(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(study)
    assert main(["rescore", str(study), "--set", "train.steps=5", "--set", "objective.tolerance=-1"]) == 2
    said = capsys.readouterr().err
    assert "'train.steps=5' is not a setting of the objective" in said
    assert "objective.tolerance is -1 but must be at least 0" in said
    assert main(["rescore", str(study), "--set", "objective.mod=net"]) == 2
    assert "did you mean 'objective.mode'?" in capsys.readouterr().err
    assert files(study) == before
    assert main(["rescore", str(study), "--set", "objective.mode=net"]) == 0
    assert str(study / "rescored" / "net" / "report.html") in capsys.readouterr().out


def test_a_study_scored_anew_is_not_scored_anew_again(study: Path) -> None:
    with pytest.raises(ConfigError, match="give the study itself"):
        rescore(rescore(study), ["objective.mode=net"])


def test_without_a_baseline_there_is_nothing_to_measure_by(study: Path) -> None:
    (study / "baseline" / "result.json").unlink()
    with pytest.raises(StoreError, match="the baseline run is missing"):
        rescore(study)
    assert not (study / "rescored").exists()


@pytest.mark.parametrize("diverged", [0, 1])
def test_a_trial_whose_result_is_gone_is_named_and_not_called_stopped(study: Path, diverged: int) -> None:
    number = next(row["number"] for row in rows_of(study).values() if row["state"] == "COMPLETE")
    StudyStore(study).amend_trials({number: {"state": "PRUNED", "diverged": 1} if diverged else {}})
    (study / "trials" / f"{number:04d}" / "result.json").unlink()
    with pytest.raises(StoreError, match=f"trial {number} has ended but its result.json is missing"):
        rescore(study)


def test_a_study_that_grew_since_says_so(study: Path) -> None:
    place = rescore(study, ["objective.mode=net"])
    said = "The study had 16 trials when it was rescored and has 17 now"
    assert said not in " ".join((place / "report.md").read_text().split())
    row = rows_of(study)[1]
    store = StudyStore(study)
    store.add_trial({**row, "number": 16})
    store.close()
    write_report(place)
    assert said in " ".join((place / "report.md").read_text().split())


def test_both_can_be_moved_together(study: Path, tmp_path: Path) -> None:
    rescore(study, ["objective.mode=pareto"])
    moved = study.rename(tmp_path / "moved")
    again = load_study(moved / "rescored" / "pareto")
    assert again.result(0) is not None
    assert again.name == "moved/rescored/pareto"


def test_scores_in_a_table_by_weight(micro_study: Path) -> None:
    study = load_study(micro_study)
    for weight in (0.0, 5.0):
        objective = ObjectiveConfig(penalty_weight=weight)
        for row in rescored_trials(study, objective).rows:
            assert row["score"] == score(row["speedup"], row["degradation"], objective)
            assert math.isfinite(row["score"])
