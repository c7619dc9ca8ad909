"""The reports of a trial, compared with numbers calculated by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import plain_result

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.objective import Baseline, ranked
from hybrid_ray.ray_tune.trial import TrialReporter, attempt
from hybrid_ray.run_result import Evaluation, Heldout, Replay

NOTHING = Replay(phases="", norms=())


def scorer(**objective: Any) -> TrialScorer:
    """A baseline of 100 plain steps that falls from 5 to 2, and a frontier through (50, 3) and (100, 2)."""
    return TrialScorer(
        baseline=Baseline.from_result(plain_result()),
        frontier=Frontier.from_points([(50.0, 3.0), (100.0, 2.0)]),
        objective=ObjectiveConfig(**objective),
    )


def hybrid(loss: float, seconds: float, **changes: Any) -> Any:
    return plain_result(
        arm="hybrid",
        real=60,
        predicted=40,
        seconds=seconds,
        heldout={"val": Heldout(loss=loss, standard_error=0.01, tokens=1000)},
        **changes,
    )


def test_at_an_evaluation_a_trial_meets_the_baseline_at_the_same_step() -> None:
    found = scorer().at(Evaluation(step=50, loss=4.4, real_steps=30, train_seconds=0.4, time=40.0), 0.01)
    assert found["baseline_loss"] == pytest.approx(4.0)
    assert found["degradation"] == pytest.approx(0.1)
    assert found["speedup"] == pytest.approx(50 / 40)
    assert found["score"] == pytest.approx(1.25 - 20 * (0.1 - 0.02))
    assert found["objective"] == found["score"]
    assert (found["step"], found["predicted_steps"], found["finished"]) == (50, 20, 0)


def test_a_slower_machine_makes_no_trial_worse() -> None:
    evaluation = Evaluation(step=50, loss=4.0, real_steps=30, train_seconds=0.4, time=40.0)
    slower = Evaluation(step=50, loss=4.0, real_steps=30, train_seconds=0.8, time=40.0)
    assert scorer().at(evaluation, 0.01)["score"] == pytest.approx(scorer().at(slower, 0.02)["score"])


def test_a_score_says_what_stopping_early_scores_in_the_same_time() -> None:
    """At 50 plain steps the frontier has loss 3, 50 % above the baseline: a penalty of 9.6."""
    equal, better = scorer().final(hybrid(3.0, 0.5)), scorer().final(hybrid(2.5, 0.5))
    assert equal["excess"] == pytest.approx(0.0)
    assert better["excess"] == pytest.approx(20 * (1.5 - 1.25))
    assert scorer().final(hybrid(3.0, 0.3))["excess"] is None  # no plain run is that short


def test_the_error_of_a_single_net_speedup_is_its_noise_over_the_slope() -> None:
    """If the loss falls as the sixth root of time, 0.2 % of noise in loss is 1.2 % in time."""
    times = (50.0, 60.0, 70.0, 85.0, 100.0)
    frontier = Frontier.from_points([(time, 3.0 * time ** (-1 / 6)) for time in times])
    assert frontier.net_error == pytest.approx(0.012)
    found = TrialScorer(baseline=scorer().baseline, frontier=frontier, objective=ObjectiveConfig())
    measured = found.final(hybrid(3.0 * 70.0 ** (-1 / 6), 0.5))
    assert measured["net_error"] == pytest.approx(0.012 * measured["net_speedup"])


def test_a_finished_trial_that_only_stopped_earlier_has_a_net_speedup_of_one() -> None:
    found = scorer().final(hybrid(3.0, 0.5))
    assert found["speedup"] == pytest.approx(2.0)
    assert found["net_speedup"] == pytest.approx(1.0)
    assert found["finished"] == 1


def test_off_the_frontier_there_is_no_net_speedup_but_the_search_has_a_finite_bound() -> None:
    better = scorer(mode="net").final(hybrid(1.9, 0.8))
    assert better["net_speedup"] is None
    assert better["objective"] == pytest.approx(100 / 80)


def test_on_its_way_a_search_for_net_speedup_compares_what_a_trial_is_heading_for() -> None:
    # halfway in 0.8 of the baseline's time, with equal loss: projected to end at loss 2 in 80 plain steps, not 100
    half_way = Evaluation(step=50, loss=4.0, real_steps=30, train_seconds=0.4, time=40.0)
    assert scorer(mode="net").at(half_way, 0.01)["objective"] == pytest.approx(1.25)
    worse = Evaluation(
        step=50, loss=6.0, real_steps=30, train_seconds=0.4, time=25.0
    )  # projected: loss 3 in 50 plain steps
    assert scorer(mode="net").at(worse, 0.01)["objective"] == pytest.approx(1.0)
    assert scorer().at(worse, 0.01)["objective"] == scorer().at(worse, 0.01)["score"]


def test_a_finished_trial_is_heading_for_what_it_got() -> None:
    found = scorer(mode="net").final(hybrid(2.5, 0.7))
    end = Evaluation(step=100, loss=2.5, real_steps=60, train_seconds=0.7, time=70.0)
    assert found["objective"] == pytest.approx(scorer(mode="net").at(end, 0.01)["objective"])
    assert found["objective"] == found["net_speedup"]


def test_a_diverged_trial_is_worst_in_a_search_for_net_speedup_too() -> None:
    found = scorer(mode="net").final(hybrid(math.nan, 0.5, status="diverged", curve=()))
    assert math.isfinite(found["objective"])
    assert found["objective"] < -1000


def test_worse_than_the_whole_frontier_is_below_all_that_is_on_it_however_fast() -> None:
    losses = (1.9, 2.0, 2.999, 3.0, 3.001, 3.5, 8.0, math.inf, math.nan)
    slow_and_good, fast_and_bad = 10.0, 0.001
    found = [
        scorer(mode="net").final(hybrid(loss, slow_and_good if loss <= 3.0 else fast_and_bad))["objective"]
        for loss in losses
    ]
    assert all(math.isfinite(objective) for objective in found)
    assert min(found[:4]) > 0 > found[4] > found[5] > found[6] > found[7] == found[8]
    assert found[5] == pytest.approx(-0.5 / 3)


def test_a_diverged_trial_reports_finite_numbers_only_where_a_scheduler_looks() -> None:
    found = scorer().final(hybrid(math.nan, 0.5, status="diverged", curve=(), error="loss is nan"))
    assert math.isfinite(found["objective"])
    assert math.isfinite(found["score"])
    assert found["objective"] < -1000
    assert (found["diverged"], found["finished"], found["error"]) == (1, 0, "loss is nan")


def test_a_run_on_other_hardware_gets_no_score() -> None:
    with pytest.raises(ValueError, match="no score: device"):
        scorer().final(hybrid(2.0, 0.5, fingerprint={"device": "another"}))


def test_a_trial_that_cannot_be_compared_fails_once_with_the_reason(tmp_path: Path) -> None:
    """Not an exception: Tune would train the trial again and fail again."""
    other = hybrid(2.0, 0.5, fingerprint={"device": "another"})
    row = attempt(lambda: other, scorer(), tmp_path)
    assert (row["status"], row["end"]) == ("failed", "failed")
    assert row["error"].startswith("no score: device: the baseline ran with")
    assert attempt(lambda: hybrid(2.0, 0.5), scorer(), tmp_path)["status"] == "finished"


def test_a_trial_that_hardly_predicts_is_inert_and_never_best() -> None:
    found = scorer().final(plain_result(real=96, predicted=4))
    assert found["inert"] == 1
    rows = [{**row, "state": "COMPLETE"} for row in (found, scorer().final(hybrid(2.0, 0.5)))]
    assert ranked(rows, "score") == rows[1:]


def reporter(sent: list[dict[str, Any]]) -> TrialReporter:
    return TrialReporter(sent.append, scorer=scorer(max_degradation=0.25), schedule=(25, 50, 60, 75, 100))


def evaluation(step: int, loss: float) -> Evaluation:
    return Evaluation(step=step, loss=loss, real_steps=step, train_seconds=0.01 * step, time=float(step))


def test_too_bad_twice_in_a_row_is_divergence_and_once_is_not() -> None:
    sent: list[dict[str, Any]] = []
    watcher = reporter(sent)
    said = [
        watcher.evaluation(evaluation(step, loss), 0.01, NOTHING) for step, loss in ((25, 7.0), (50, 4.0), (60, 7.0))
    ]
    assert said == [None, None, None]
    assert watcher.evaluation(evaluation(75, 7.0), 0.01, NOTHING) == "diverged"
    assert [row["step"] for row in sent] == [25, 50, 60]


def test_an_evaluation_that_waited_for_the_end_of_a_cycle_is_reported_at_its_scheduled_step() -> None:
    """Else trials would be compared with each other at different steps. The measures belong to the real step."""
    sent: list[dict[str, Any]] = []
    watcher = reporter(sent)
    for step in (30, 58, 74):  # two scheduled steps may pass in one long cycle
        watcher.evaluation(evaluation(step, 3.0), 0.01, NOTHING)
    assert [(row["step"], row["steps"]) for row in sent] == [(25, 30), (50, 58), (60, 74)]
    assert sent[0]["baseline_loss"] == scorer().baseline.loss_at(30)


def test_the_last_evaluation_is_left_to_the_final_report() -> None:
    sent: list[dict[str, Any]] = []
    watcher = reporter(sent)
    for step in (50, 100):
        assert watcher.evaluation(evaluation(step, 3.0), 0.01, Replay(phases="FFPMP", norms=())) is None
    assert [row["step"] for row in sent] == [50]
    assert {name: count for name, count in sent[0].items() if name.startswith("phase_")} == {
        "phase_full": 2,
        "phase_predict": 2,
        "phase_correct": 1,
    }
