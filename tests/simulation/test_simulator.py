"""Whole studies with a fake clock and real runs: searcher, scheduler, objective, divergence rule, confirmation."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

import pytest
from nano_runs import run_table, table_job
from optuna.trial import TrialState
from run_table import Knobs
from simulator import Faults, SimulatedStudy, simulate

from hybrid_ray.objective import ranked
from hybrid_ray.ray_tune.optuna_storage import counted_trials
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.run_result import was_trained
from hybrid_ray.study.candidates import best_candidates

PATIENCE = 0.05
FAULTS = Faults(diverged=0.1, died=0.05, out_of_memory=0.02)


def best(study: SimulatedStudy) -> Mapping[str, Any]:
    return ranked(study.rows, "score")[0]


def test_each_of_many_trials_is_told_as_what_it_was() -> None:
    study = simulate(table_job(trials=400, stop_after_failures=400), run_table(), faults=FAULTS, concurrency=4)
    states = Counter(trial.state for trial in study.optuna_study.trials)
    assert sum(states.values()) == len(study.rows)
    assert counted_trials(study.rows) == 400
    assert set(states) == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    told = {row["number"]: row["state"] for row in study.rows}
    assert told == {trial.number: trial.state.name for trial in study.optuna_study.trials}
    trained = [row["number"] for row in study.rows if was_trained(row)]
    faults = Counter(FAULTS.of(number)[0] for number in trained)
    assert 20 < faults["diverged"] < 60
    failed = Counter(str(row["error"]).split(":")[0] for row in study.rows if row["state"] == "FAIL")
    assert failed["oom"] == faults["out_of_memory"]
    assert 0 < failed["the trial's process died"] <= faults["died"]  # ASHA stops some of them earlier


def test_diverged_trials_are_pruned_with_a_violated_constraint_and_never_best() -> None:
    job = table_job(trials=100, sampler="random")
    study = simulate(job, run_table(), faults=Faults(diverged=0.3))
    diverged = [row for row in study.rows if row["diverged"]]
    assert 10 < len(diverged) < 40
    trials = study.optuna_study.trials
    assert {row["state"] for row in diverged} == {"PRUNED"}
    assert all(trials[row["number"]].constraints["diverged"] > 0 for row in diverged)
    assert not best_candidates(diverged, replace(job, confirm=replace(job.confirm, best=100)))
    ended = [{**row, "state": "COMPLETE"} for row in diverged]  # so that only `diverged` can exclude them
    assert not best_candidates(ended, replace(job, confirm=replace(job.confirm, best=100)))


def test_a_loss_too_bad_at_two_evaluations_in_a_row_ends_a_trial_there() -> None:
    """With a fifth of the default patience some of the real runs exceed it."""
    job = table_job(trials=150, sampler="random", scheduler="none")
    job = replace(job, objective=replace(job.objective, max_degradation=PATIENCE))
    rows = simulate(job, run_table()).rows
    ended = [row for row in rows if row["diverged"]]
    assert ended
    assert {row["state"] for row in ended} == {"PRUNED"}
    assert all(row["degradation"] > PATIENCE for row in ended)
    assert min(row["steps"] for row in ended) < job.train.steps
    assert all(row["ended"] - row["started"] == pytest.approx(row["time"]) for row in rows if was_trained(row))


def test_inert_trials_are_never_best_however_high_their_score() -> None:
    job = table_job(best=100, trials=100, sampler="random", scheduler="none")
    study = simulate(replace(job, confirm=replace(job.confirm, best=0)), run_table())
    inert = [row for row in study.rows if row["inert"]]
    assert inert
    assert max(row["score"] for row in inert) > min(row["score"] for row in study.rows if not row["inert"])
    named = {candidate.trial for candidate in best_candidates(study.rows, job)}
    may_be = [row for row in filter(was_trained, study.rows) if row["predicted_share"] >= 0.05 and not row["diverged"]]
    assert {row["loss"] for row in may_be} == {row["loss"] for row in study.rows if row["number"] in named}
    assert named <= {row["number"] for row in may_be}


def test_asha_saves_cost_and_keeps_a_best_as_good() -> None:
    full = [simulate(table_job(trials=60, scheduler="none", seed=seed), run_table()) for seed in range(4)]
    asha = [simulate(table_job(trials=60, seed=seed), run_table()) for seed in range(4)]
    assert fmean(study.cost for study in asha) < 0.95 * fmean(study.cost for study in full)
    lost = fmean(best(one)["objective"] for one in full) - fmean(best(one)["objective"] for one in asha)
    assert lost < 0.02


def test_workers_side_by_side_end_sooner_for_the_same_cost() -> None:
    alone = simulate(table_job(trials=40, sampler="random", scheduler="none"), run_table())
    four = simulate(table_job(trials=40, sampler="random", scheduler="none"), run_table(), concurrency=4)
    assert alone.makespan == pytest.approx(alone.cost)
    assert four.cost == pytest.approx(alone.cost)
    assert four.cost / 4 <= four.makespan < 1.1 * four.cost / 4


def test_a_stopped_trial_costs_what_it_used_and_no_more() -> None:
    rows = simulate(table_job(trials=40), run_table()).rows
    stopped = [row for row in rows if row["state"] == "PRUNED"]
    assert stopped
    assert all(row["ended"] - row["started"] == pytest.approx(row["time"]) for row in rows if was_trained(row))
    assert all(160 <= row["steps"] < 300 for row in stopped)  # between the grace period and the end


def test_failures_in_a_row_end_the_search() -> None:
    study = simulate(table_job(trials=50), run_table(), faults=Faults(died=1.0), concurrency=2)
    assert study.gave_up
    assert [row["state"] for row in study.rows] == [
        "FAIL"
    ] * 6  # five in a row, and the one that ran in parallel with the fifth
    assert study.confirmation is None


def test_a_trial_whose_process_dies_is_tried_again_and_pays_twice() -> None:
    job = table_job(trials=1, scheduler="none", sampler="random")
    once = simulate(replace(job, search=replace(job.search, max_failures=0)), run_table(), faults=Faults(died=1.0))
    twice = simulate(job, run_table(), faults=Faults(died=1.0))
    assert twice.cost == pytest.approx(2 * once.cost)


@cache
def searched(mode: str) -> SimulatedStudy:
    return simulate(table_job(mode=mode, trials=40), run_table(), concurrency=2)


def test_the_same_seed_is_the_same_study() -> None:
    again = simulate(table_job(mode="score", trials=40), run_table(), concurrency=2)
    assert list(again.rows) == list(searched("score").rows)
    assert again.makespan == searched("score").makespan
    other = simulate(table_job(trials=40, seed=1), run_table(), concurrency=2)
    assert list(other.rows) != list(again.rows)


@pytest.mark.parametrize("mode", ["score", "net", "pareto"])
def test_every_objective_is_searched_to_its_end(mode: str) -> None:
    study = searched(mode)
    assert counted_trials(study.rows) == 40
    assert {row["state"] for row in study.rows} <= {"COMPLETE", "PRUNED"}
    complete = [trial for trial in study.optuna_study.trials if trial.state is TrialState.COMPLETE]
    assert {len(trial.values) for trial in complete} == {2 if mode == "pareto" else 1}


@pytest.mark.parametrize("scheduler", ["median", "none"])
def test_the_other_schedulers_run_too(scheduler: str) -> None:
    study = simulate(table_job(trials=60, scheduler=scheduler), run_table())
    pruned = sum(row["state"] == "PRUNED" for row in study.rows)
    assert pruned > 0 if scheduler == "median" else pruned == 0


def confirmed(knobs: Knobs, *, faster: float = 1.0, loss: float = 1.0, **confirm: Any) -> Mapping[str, Any]:
    """The confirmation of a single setting, searched and confirmed alone."""
    job = table_job(trials=1, best=1)
    job = replace(job, confirm=replace(job.confirm, **confirm))
    space = replace(load_space(job), presets={"this one": knobs._asdict()})
    study = simulate(job, run_table().with_gain(faster, loss=loss), space=space)
    assert study.confirmation is not None
    (entry,) = study.confirmation["candidates"]
    return dict(entry)


LONG, SHORT = Knobs(0.0, 20, 0), Knobs(0.2, 3, 0)
"""Two settings that predict on fresh seeds too, and whose controls the table has."""


def test_the_real_runs_confirm_no_gain_in_this_short_training() -> None:
    for knobs in (LONG, SHORT):
        entry = confirmed(knobs)
        assert all(row["status"] == "finished" for rows in entry["runs"].values() for row in rows)
        assert entry["verdict"] in ("no gain shown", "worse than stopping early")
        assert entry["net_speedup"]["mean"] < 1


def test_a_planted_gain_is_found() -> None:
    assert confirmed(SHORT, faster=1.5, loss=0.97)["verdict"] == "real gain"


def test_a_gain_in_time_alone_is_refused_since_a_placebo_does_as_well() -> None:
    """In these runs predicting is no better than the placebo."""
    assert "placebo" in str(confirmed(SHORT, faster=1.5)["refusal"])
    assert "placebo" in str(confirmed(SHORT, faster=1.5, arms=())["refusal"])  # it runs unasked


def test_a_candidate_that_the_table_cannot_confirm_is_no_gain_and_says_why() -> None:
    entry = confirmed(Knobs(0.1, 30, 0), faster=3.0)
    assert entry["verdict"] != "real gain"
    assert "no hybrid run of Knobs(" in entry["runs"]["hybrid"][0]["error"]
