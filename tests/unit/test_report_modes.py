"""What a study says when net speedup, or speedup and degradation, were searched; and memory and energy by phase."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from study_builder import build_study

from hybrid_ray.objective import pareto_front
from hybrid_ray.report.headline import headline
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.report.plots.study import PLOTS, shown
from hybrid_ray.report.study_page import write_report
from hybrid_ray.report.tables.runs import device_by_phase, memory
from hybrid_ray.report.tables.trials import trials_table
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl


def searched(directory: Path, mode: str, *, net: float = 1.1, **options: bool) -> Study:
    """A study that searched ``mode``: trials whose net speedups spread up to 1.12 times ``net``, inert ones at 1."""
    build_study(directory, net=net, **options)
    path = directory / "job.yaml"
    path.write_text(path.read_text().replace("mode: score", f"mode: {mode}"))
    rows = read_jsonl(directory / "trials.jsonl")
    for row in rows:
        if mode == "net" and row["state"] == "COMPLETE":
            row["objective"] = row["net_speedup"]
    (directory / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_study(directory)


def test_the_front_is_named_marked_and_drawn(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "pareto", confirm=False)
    done = study.trials[(study.trials["state"] == "COMPLETE") & (study.trials["diverged"] != 1)]
    points = list(zip(done["speedup"], done["degradation"], strict=True))
    front = {int(number) for number, on in zip(done["number"], pareto_front(points), strict=True) if on}
    assert 1 < len(front) < len(done)
    assert set(study.front["number"]) == front

    said = headline(study)
    assert said.kind == "not confirmed"
    assert f"of 16 trials {len(front)} are on the front of speedup and degradation" in said.text
    named = re.findall(r"trial (\d+) \((\d\.\d\d) × at ([+-]\d+\.\d) % loss, net speedup (\d\.\d\d)", said.text)
    assert 1 < len(named) <= 4
    for number, faster, worse, net in named:
        row = done.set_index("number").loc[int(number)]
        assert int(number) in front
        assert row["inert"] == 0
        assert [faster, net] == [f"{row['speedup']:.2f}", f"{row['net_speedup']:.2f}"]
        assert worse == f"{100 * row['degradation']:+.1f}"

    table = trials_table(study)
    place = table.columns.index("speedup")
    assert table.columns[place : place + 3] == ("speedup", "degradation", "net speedup")
    assert {int(row[0]) for row in table.rows if "on the front" in row[-1]} == front
    axes = next(plot for plot in shown(study) if plot.name == "front").draw(study).axes[0]
    ringed = next(line for line in axes.lines if line.get_label() == "on the front")
    assert sorted(ringed.get_xdata()) == pytest.approx(sorted(done.set_index("number").loc[list(front), "speedup"]))


def test_the_front_is_drawn_where_every_trial_lost_more_than_the_tolerance(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "pareto", confirm=False)
    worse = replace(study, trials=study.trials.assign(degradation=5.0 + 0.01 * study.trials["number"]))
    low, high = next(plot for plot in PLOTS if plot.name == "front").draw(worse).axes[0].get_ylim()
    assert low <= 0 < 2 < 500 < high


def test_the_best_of_two_objectives_is_on_the_front_with_the_highest_score(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "pareto")
    predict = study.front[study.front["inert"] != 1]
    assert study.best["number"] in set(predict["number"])
    assert study.best["score"] == predict["score"].max()
    assert list(study.ranked["number"])[: len(predict)] == list(predict.sort_values("score", ascending=False)["number"])


def test_a_front_of_trials_that_hardly_predict_means_that_predicting_did_not_pay(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "pareto", confirm=False)
    path = study.directory / "trials.jsonl"
    rows = read_jsonl(path)
    for row in rows:
        if row.get("inert"):
            row |= {"speedup": 9.0, "degradation": -0.5}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = headline(load_study(study.directory))
    assert found.kind == "inert"
    assert "none of them predicts at least 5 % of its steps" in found.text


def test_a_search_for_net_speedup_leads_with_it(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "net", confirm=False)
    predict = study.trials[(study.trials["state"] == "COMPLETE") & (study.trials["inert"] == 0)]
    highest = predict["net_speedup"].max()
    assert study.best["net_speedup"] == highest
    net = f"net speedup {highest:.2f} ± {study.best['net_error']:.2f}"
    assert f"the best of 16 trials has {net} (score {study.best['score']:.2f})" in headline(study).text
    table = trials_table(study)
    place = table.columns.index("net speedup")
    assert table.columns[place : place + 2] == ("net speedup", "score")
    assert table.marked == {f"{study.best['number']:.0f}"}
    write_report(study.directory)
    assert "searched for net speedup" in (study.directory / "report.html").read_text()
    for name in ("knobs", "history"):
        axes = next(plot for plot in PLOTS if plot.name == name).draw(study).axes[0]
        assert axes.get_ylabel() == "net speedup (×)"
        finished = next(line for line in axes.lines if line.get_label() == "finished")
        assert finished.get_ydata().max() == study.worth[study.trials["state"] == "COMPLETE"].max()


def test_off_the_frontier_the_bound_that_was_searched_is_told_as_one(tmp_path: Path) -> None:
    study = searched(tmp_path / "study", "net", confirm=False)
    number = int(study.best["number"])
    path = study.directory / "trials.jsonl"
    rows = read_jsonl(path)
    rows = [row | ({"net_speedup": None, "objective": 1.42} if row["number"] == number else {}) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "has a net speedup of at least 1.42" in headline(load_study(study.directory)).text


@pytest.mark.parametrize("mode", ["net", "pareto"])
def test_where_stopping_early_wins_it_is_said_whatever_was_searched(tmp_path: Path, mode: str) -> None:
    study = searched(tmp_path / "study", mode, net=0.93)
    rows = read_jsonl(study.directory / "trials.jsonl")
    rows = [row for row in rows if not row.get("inert")]
    (study.directory / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = load_study(study.directory)
    statistics = read_json(study.directory / "confirmation.json")
    confirmed, best = (
        study.directory / "confirmation" / str(number)
        for number in (statistics["candidates"][0]["trial"], int(study.best["number"]))
    )
    if confirmed != best:
        confirmed.rename(best)
    statistics["candidates"][0]["trial"] = int(study.best["number"])
    (study.directory / "confirmation.json").write_text(json.dumps(statistics))
    found = headline(load_study(study.directory))
    assert found.kind == "worse"
    assert found.text.startswith("Nothing beat stopping early: ")
    assert f"reaches the loss of trial {study.best['number']:.0f} in 0.9" in found.text


def test_memory_by_phase_its_growth_and_energy_are_shown(tmp_path: Path) -> None:
    study = load_study(build_study(tmp_path / "study", trials=3))
    assert device_by_phase(study) is None
    path = study.directory / "baseline" / "result.json"
    result = read_json(path)
    result["statistics"] |= {
        "memory": {
            "full": {"allocated": 3 * 2**20, "reserved": 8 * 2**20},
            "predict": {"allocated": 2**21, "reserved": 0},
        },
        "memory_bytes_a_step": 0.0,
    }
    result["machine"] = {
        "gpu_energy_joules": 120.0,
        "gpu_phases": {"full": {"energy_joules": 100.0, "mean_power_watts": 250.0}, "other": {"energy_joules": 20.0}},
    }
    path.write_text(json.dumps(result))
    found = device_by_phase(load_study(study.directory))
    assert found.columns == ("run", "phase", "peak allocated", "peak reserved", "energy joules", "mean power watts")
    assert found.rows == (
        ("baseline", "full", "3.0 MiB", "8.0 MiB", "100", "250"),
        ("baseline", "predict", "2.0 MiB", "0.0 MiB", "–", "–"),
        ("baseline", "other", "–", "–", "20", "–"),
    )
    rows = [row[1:] for row in memory(load_study(study.directory)).rows]
    assert ("memory growth", "+0.0 bytes per step") in rows
    assert ("gpu energy joules", "120") in rows
    assert not any("phases" in measure for measure, _ in rows)
    write_report(study.directory)
    assert "Memory and energy by phase" in (study.directory / "report.md").read_text()
