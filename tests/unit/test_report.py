"""What a report says: the headline in every case, both files whole and safe, pictures that draw whatever there is."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from study_builder import STEPS, build_study, confirmed, run_result, trial_row

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import StoreError
from hybrid_ray.report.headline import Headline, conclude, headline
from hybrid_ray.report.load import load_study
from hybrid_ray.report.pages import markdown_cell
from hybrid_ray.report.plots.study import PLOTS
from hybrid_ray.report.plots.style import INK, png, svg
from hybrid_ray.report.study_page import write_report
from hybrid_ray.report.tables.trials import ceilings_of, trials_table
from hybrid_ray.run_result import TRIAL_COLUMNS
from hybrid_ray.storage.json_files import read_json, write_json_atomic
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.study_store import StudyStore


def table(*changes: dict[str, Any]) -> pd.DataFrame:
    """Finished trials that predict a third of their steps, each with changes of its own."""
    result = run_result(predicted=200, net=0.93)
    alone = {"excess": None, "net_error": None}
    rows = [trial_row(number, result, JobConfig()) | alone | change for number, change in enumerate(changes)]
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))


def find(trials: pd.DataFrame, *candidates: dict[str, Any]) -> Headline:
    usable = trials[(trials["state"] == "COMPLETE") & (trials["diverged"] != 1)].sort_values("score", ascending=False)
    predicts = usable[usable["inert"] != 1]
    winner, best = (None if rows.empty else rows.iloc[0] for rows in (usable, predicts))
    return conclude(trials, winner, best, {"candidates": candidates} if candidates else None)


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"\d+\.\d+", text)]


def test_a_gain_is_claimed_where_the_interval_says_so() -> None:
    candidate = confirmed(0, net=1.12)
    found = find(table({}, {}), candidate)
    assert found.kind == "gain"
    assert found.text.startswith("A real gain over AdamW: on fresh seeds, trial 0 reaches its loss 1.1")
    assert "does not tune AdamW's learning rate, which may give the same gain" in found.text
    assert f"{candidate['net_speedup']['low']:.2f}–{candidate['net_speedup']['high']:.2f}, 3 seeds" in found.text
    assert "placebo" not in found.text


def test_a_gain_that_the_placebo_has_too_is_not_claimed() -> None:
    same = {"loss_vs_placebo": {"mean": 1.0, "low": 0.99, "high": 1.01, "n": 3}}
    found = find(table({}), confirmed(0, net=1.12, changes=same))
    assert found.kind == "refused"
    assert "a placebo, which skips the same steps and does nothing in them, is not shown to do worse" in found.text


@pytest.mark.parametrize(
    "cost, kind",
    [
        ({"mean": 1.02, "low": 0.99, "high": 1.05}, "gain"),
        ({"mean": 1.3, "low": 0.9, "high": 1.9}, "refused"),
        ({"mean": 1.05, "low": 1.01, "high": 1.3}, "refused"),
    ],
)
def test_a_gain_that_dearer_real_steps_may_eat_is_not_claimed(cost: dict[str, float], kind: str) -> None:
    found = find(table({}), confirmed(0, net=1.12, changes={"real_step_cost": {**cost, "n": 3}}))
    assert found.kind == kind
    assert ("its real steps cost" in found.text) == (kind == "refused")


def test_worse_than_stopping_early_leads_with_that() -> None:
    found = find(table({"score": 1.31}, {"score": 1.2}), confirmed(0, net=0.93))
    assert found.kind == "worse"
    assert found.text.startswith(
        "Nothing beat stopping early: the best of 2 trials scored 1.31, but plain training with"
    )
    mean, low, high = numbers(found.text)[-3:]
    assert low <= mean <= high < 1


def test_an_interval_with_one_in_it_claims_nothing() -> None:
    found = find(table({}), confirmed(0, net=1.0, noise=0.002))
    assert found.kind == "no gain"
    assert "within the noise" in found.text
    low, high = numbers(found.text)[-2:]
    assert low < 1 < high


def test_faster_but_not_shown_to_be_lower_at_equal_time_is_not_called_noise() -> None:
    candidate = confirmed(0, net=1.5) | {"verdict": "no gain shown"}
    candidate["net_speedup"] |= {"advantage": {"mean": 1.02, "low": 0.98, "high": 1.07, "n": 3}}
    found = find(table({}), candidate)
    assert found.kind == "no gain"
    assert "within the noise" not in found.text
    assert "its loss is not shown to be lower at equal time (stopping early / hybrid 1.020, 95 % interval" in found.text


def test_too_few_seeds_claim_nothing_however_good_they_look() -> None:
    found = find(table({}), confirmed(0, net=1.5, seeds=(1000, 1001)))
    assert found.kind == "too few seeds"
    assert found.text.startswith("Nothing can be claimed")
    assert "2 fresh seeds and an interval needs 3" in found.text


def test_a_winner_that_does_not_predict_means_that_predicting_did_not_pay() -> None:
    found = find(table({"score": 1.1}, {"score": 1.4, "inert": 1, "predicted_share": 0.02}), confirmed(0, net=0.93))
    assert found.kind == "inert"
    assert found.text.startswith("Predicting did not pay: the highest score of 2 trials, 1.40")
    assert "only 2 % of its steps" in found.text
    assert "scored 1.10" in found.text
    alone = find(table({"score": 1.4, "inert": 1, "predicted_share": 0.0}))
    assert alone.kind == "inert"
    assert "no trial that predicts more" in alone.text


def test_a_candidate_that_hardly_predicts_on_fresh_seeds_is_inert_too() -> None:
    assert find(table({}), confirmed(0, net=1.0, predicted=12)).kind == "inert"


def test_nothing_confirmed_claims_nothing() -> None:
    found = find(table({"net_speedup": 1.4}))
    assert found.kind == "not confirmed"
    assert "net speedup 1.40 on one seed" in found.text
    assert "nothing is claimed" in found.text
    assert "no net speedup" in find(table({"net_speedup": None})).text


def test_no_finished_trial_is_told_by_what_became_of_them() -> None:
    rows = [{"state": "PRUNED", "diverged": 1}, {"state": "PRUNED"}, {"state": "FAIL"}, {"state": "FAIL"}]
    interrupted = {
        "state": "FAIL",
        "end": "interrupted",
        "error": "interrupted: asked to stop",
    }
    found = find(table(*rows, interrupted))
    assert found.kind == "nothing finished"
    assert "of 4 trials, 1 diverged, 1 stopped early, 2 failed" in found.text
    assert find(table()).text.startswith("No trial has ended yet")


def test_of_two_confirmed_the_certain_gain_is_told() -> None:
    found = find(table({}, {}), confirmed(0, net=0.95), confirmed(1, net=1.12))
    assert found.kind == "gain"
    assert "trial 1 reaches" in found.text


def test_an_end_of_an_interval_that_is_not_known_is_open() -> None:
    candidate = confirmed(0, net=0.93)
    candidate["net_speedup"] |= {"low": None}
    text = find(table({}), candidate).text
    assert "or less, 95 % interval up to" in text


def test_ceilings_are_those_of_the_method_page() -> None:
    assert [round(ceiling, 2) for ceiling in ceilings_of(0.4, 2 / 3)] == [1.67, 1.36]
    assert ceilings_of(0.4, None)[1] is None
    assert ceilings_of(None, 2 / 3) == (None, None)


class _Page(HTMLParser):
    """Text of a page in order, and whatever it would load or run."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words, self.loads, self.scripts, self.open = [], [], 0, []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script" or any(name.startswith("on") for name, _ in attributes)
        self.loads += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]
        if tag not in ("meta", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def test_the_report_of_a_real_study_leads_with_what_was_found(micro_study: Path) -> None:
    found = write_report(micro_study)
    page = _Page((micro_study / "report.html").read_text())
    assert page.text.index(found.text) < page.text.index("Trials over the frontier") < page.text.index("Confirmation")
    assert page.loads == []
    assert page.scripts == 0
    assert re.search(r"net speedup.{0,60}score", page.text)
    for heading in (
        "Speedups and their upper bounds", "Seconds by part of a step", "Steps, data and time", "Glossary",
    ):  # fmt: skip
        assert heading in page.text
    markdown = (micro_study / "report.md").read_text()
    assert markdown.startswith("# ")
    pictures = re.findall(r"\(plots/(\w+)\.png\)", markdown)
    assert pictures[0] == "frontier"
    for name in pictures:
        assert (micro_study / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for text in (page.text, markdown):
        assert not re.search(r"\b(nan|None|inf)\b", text)


def test_score_and_net_speedup_stand_side_by_side(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    found = trials_table(load_study(directory))
    place = found.columns.index("score")
    assert found.columns[place + 1] == "net speedup"
    assert found.columns[place + 2 : place + 6] == ("excess", "speedup", "1/(1−f)", "1/(1−f·b)")


def test_what_stopping_early_scores_stands_with_each_score_and_in_the_ranking(tmp_path: Path) -> None:
    """Plain training stopped at 0.85 N is a row like those of trials, with the score that its speed and loss give."""
    directory = build_study(tmp_path / "study")
    study = load_study(directory)
    found = trials_table(study)
    row = dict(zip(found.columns, next(row for row in found.rows if row[0] == "0.85 N steps"), strict=True))
    plain = study.plain[study.plain["length"] == 0.85].iloc[0]
    assert float(row["score"]) == pytest.approx(plain["score"], abs=1e-3)
    assert plain["speedup"] == pytest.approx(1 / 0.85)
    assert row["net speedup"] == "1"
    assert row["state"] == "plain"
    best = study.best
    equal = best["score"] - best["excess"]
    assert f"scored {best['score']:.2f} (stopping early {equal:.2f})" in write_report(directory).text
    page = (directory / "report.html").read_text()
    assert f"stopping early {equal:.2f}" in page
    assert f"{best['net_speedup']:.3f} ± {best['net_error']:.3f}" in page


def test_a_trial_that_equals_another_is_named_so_and_counts_nowhere_else(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    before = load_study(directory)
    best = before.best
    copy = {**best.dropna().to_dict(), "number": 16, "equal_to": int(best["number"])}
    StudyStore(directory).add_trial(copy)
    study = load_study(directory)
    assert list(study.ranked["number"]) == list(before.ranked["number"])
    assert len(study.trained) == len(before.trained) == 16
    assert headline(study).text == headline(before).text
    found = trials_table(study)
    row = next(row for row in found.rows if row[0] == "16")
    assert f"equal to trial {best['number']:.0f}, not trained" in row[-1]
    assert "1 of the proposed settings would train the same weights" in found.note
    write_report(directory)


def test_headline_and_first_figure_give_the_same_confirmed_net_speedup(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study")
    text = write_report(directory).text
    study = load_study(directory)
    assert study.headline in text
    assert repr(study) == f"<Study {directory}, {len(study.trials)} trials: {study.headline}>"
    assert study.net_speedup is not None
    net = study.net_speedup["mean"]
    first = re.search(r'<div class="tile"><b>([0-9.]+)', (directory / "report.html").read_text())
    assert first is not None
    assert first[1] == f"{net:.2f}"
    assert f"net speedup {net:.2f}, 95 % interval" in text


def test_whatever_an_error_message_holds_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=3)
    path, evil = directory / "trials.jsonl", "<script>alert(1)</script> | ![x](http://x.test/y) `a`\n# b"
    rows = read_jsonl(path)
    rows[2] |= {"state": "FAIL", "error": evil}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(directory)
    page = _Page((directory / "report.html").read_text())
    assert page.scripts == 0
    assert page.loads == []
    assert "<script>alert(1)</script>" in page.text
    (line,) = [line for line in (directory / "report.md").read_text().splitlines() if "alert" in line]
    assert r"\<script\>" in line
    assert r"\!" not in line
    assert "![x](" not in line
    assert markdown_cell("a | b\nc") == r"a \| b c"


def test_the_report_shows_the_machine_but_neither_the_job_nor_the_users_files(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=2, record=True)
    environment = read_json(directory / "environment.json")
    own = {"sources": {"own_model": "class SeriesTask(Task): ..."}, "task": load_study(directory).words}
    write_json_atomic(directory / "environment.json", {**environment, **own})
    write_report(directory)
    for name in ("report.html", "report.md"):
        text = (directory / name).read_text()
        assert "8.0 GiB" in text
        assert "SeriesTask" not in text
        assert "studies_dir" not in text.replace("\\_", "_")


def test_an_unfinished_study_says_so_and_claims_nothing(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=5, finished=False, confirm=False)
    found = write_report(directory)
    assert found.text.startswith("Unfinished (5 of 5 trials so far). Not confirmed")
    text = _Page((directory / "report.html").read_text()).text
    assert "This study is not finished" in text
    assert "hybrid-ray resume" in text
    assert "this report claims no gain" in text


def test_a_study_cut_short_by_its_budget_is_not_finished(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=5, confirm=False)
    StudyStore(directory).event("cut_short", note="the budget of 5 minutes is used up")
    assert write_report(directory).text.startswith("Unfinished (5 of 5 trials so far)")
    for name in ("report.md", "report.html"):
        text = (directory / name).read_text()
        assert "This study is not finished" in text
        assert "the budget of 5 minutes is used up" in text
        assert "hybrid-ray resume" in text


def test_a_study_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=0, finished=False, confirm=False)
    assert "No trial has ended yet" in write_report(directory).text
    for path in directory.glob("*/**/result.json"):
        path.unlink()
    write_report(directory)
    assert "No frontier run and no trial has ended yet." in (directory / "report.html").read_text()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    directory = build_study(tmp_path / "study", trials=2, confirm=False)
    (directory / "report.html").write_text("the old one")
    (directory / "trials.jsonl").write_text('{"number": 0\n{"number": 1}\n')
    with pytest.raises(StoreError, match=r"trials\.jsonl:1 is damaged"):
        write_report(directory)
    assert (directory / "report.html").read_text() == "the old one"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_every_picture_draws_by_itself(tmp_path: Path, plot: Any) -> None:
    study = load_study(build_study(tmp_path / "study", trials=3))
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 30}):
        before = dict(mpl.rcParams)
        figure = plot.draw(study)
        assert dict(mpl.rcParams) == before, "a reader's own settings are left alone"
        assert figure.axes[0].get_facecolor()[:3] != (1, 0, 0)
        drawn = svg(figure)
        assert len(png(figure)) > 5000
    assert drawn == svg(plot.draw(study)), "a report written anew differs only where the study does"
    assert INK not in drawn, "ink follows the page's light or dark mode"
    assert f"var(--{'ink'})" in drawn
    identities = re.findall(r' id="([^"]+)"', drawn)
    assert len(identities) == len(set(identities))


def test_the_frontier_picture_marks_best_and_confirmed(tmp_path: Path) -> None:
    study = load_study(build_study(tmp_path / "study"))
    axes = PLOTS[0].draw(study).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    best, line = study.best, study.frontier[study.frontier["on_frontier"]]
    assert lines["best trial"].get_xydata().tolist() == [[best["time"], best["loss"]]]
    assert lines["frontier: stopping early"].get_xydata().tolist() == line[["time", "loss"]].to_numpy().tolist()
    marked = next(one for one in axes.containers if one.get_label().startswith("fresh seeds"))
    (time, loss), candidate = marked[0].get_xydata()[0], study.statistics["candidates"][0]
    usual = math.exp(float(np.interp(math.log(time), np.log(line["time"]), np.log(line["loss"]))))
    advantage = candidate["net_speedup"]["advantage"]["mean"]
    assert usual / loss == pytest.approx(advantage, rel=1e-6), "as far from the frontier as the paired seeds say"
    labels = [text.get_text() for legend in axes.figure.legends for text in legend.get_texts()]
    drawn = [*axes.lines, *axes.containers]
    named = [one.get_label() for one in drawn if not one.get_label().startswith("_")]
    assert set(named) <= set(labels), "every mark is in the legend"
    low, high = axes.get_ylim()
    assert low < line["loss"].min()
    assert high < 9.0, "a diverged trial does not squeeze all the others into a line"
    assert axes.get_xlim()[1] > STEPS
