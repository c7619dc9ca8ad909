"""Search spaces and schedulers: the presets tried first, the ranges, the grace period and the rungs."""

import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from micro_jobs import micro_job
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from hybrid_ray.config import HybridConfig, JobConfig, ObjectiveConfig, SearchConfig, TrainConfig
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.errors import ConfigError
from hybrid_ray.ray_tune.checks import check_search
from hybrid_ray.ray_tune.scheduler import build_scheduler, grace_steps, rungs
from hybrid_ray.ray_tune.space import load_space, settings
from tune_spaces import presets

SPACES = ("three_knobs", "phase_ratios", "gain_memory_cycle")
JOBS = Path(__file__).parents[2] / "jobs"


def job_of(steps: int) -> JobConfig:
    return JobConfig(train=TrainConfig(steps=steps))


def test_the_first_presets_are_the_published_ones() -> None:
    assert list(load_space(job_of(600)).presets)[:3] == ["quick", "conservative", "aggressive"]


@pytest.mark.parametrize("predictor", ["ema_nesterov", "slow_momentum"])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("steps", [20, 50, 600, 20_000])
def test_every_preset_and_draw_is_a_job_that_can_be_at_any_length(steps: int, name: str, predictor: Any) -> None:
    job = replace(job_of(steps), search=SearchConfig(space=name), hybrid=HybridConfig(predictor=predictor))
    space = load_space(job)
    assert space.presets
    assert all(space.allows(values) for values in space.presets.values())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for params in [*space.presets.values(), *(space.ask(study.ask(), job) for _ in range(20))]:
        hybrid = settings(job, params)
        if "warmup_steps" in space.ranges:
            assert hybrid.warmup_steps + hybrid.full_steps < steps


def test_phase_ratios_have_the_published_shares() -> None:
    job = replace(job_of(1000), search=SearchConfig(space="phase_ratios"))
    found = load_space(job).presets["published"]
    phases = [found[name] for name in ("full_steps", "prediction_horizon", "correct_steps")]
    rest = 1 - found["warmup_steps"] / 1000
    assert [round(rest * steps / sum(phases), 2) for steps in phases] == [0.2, 0.4, 0.3]
    assert grace_steps(job, load_space(job)) >= 250  # no trial is judged before the longest warmup is over


def test_gain_and_memory_of_a_predictor_without_them_is_refused() -> None:
    job = replace(job_of(600), search=SearchConfig(space="gain_memory_cycle"), hybrid=HybridConfig(predictor="snoo"))
    with pytest.raises(ConfigError, match="has no gain and memory"):
        load_space(job)


def test_presets_are_the_seeds_at_the_lengths_they_were_written_for() -> None:
    assert presets.quick(job_of(50)) == {
        "confidence_threshold": 0.3,
        "prediction_horizon": 5,
        "correction_interval": 0,
    }
    assert presets.conservative(job_of(1000)) == {
        "confidence_threshold": 0.6,
        "prediction_horizon": 50,
        "correction_interval": 15,
    }
    assert presets.aggressive(job_of(1000)) == {
        "confidence_threshold": 0.55,
        "prediction_horizon": 75,
        "correction_interval": 10,
    }


def test_trial_settings_are_the_jobs_own_with_the_knobs_put_over_them(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    hybrid = settings(job, presets.quick(job))
    assert hybrid == replace(job.hybrid, confidence_threshold=0.3, prediction_horizon=6, correction_interval=0)
    with pytest.raises(ConfigError, match=r"hybrid\.prediction_horizon is 0"):
        settings(job, {"prediction_horizon": 0})


def test_an_unknown_space_is_a_mistake_in_the_job() -> None:
    with pytest.raises(ConfigError, match=r"no module tune_spaces\.three_nobs"):
        load_space(JobConfig(search=SearchConfig(space="three_nobs")))
    with pytest.raises(ConfigError, match="must be package"):
        load_space(JobConfig(search=SearchConfig(space="../evil")))
    with pytest.raises(ConfigError, match="has no space"):
        load_space(JobConfig(search=SearchConfig(space="presets")))


def test_a_space_with_presets_that_do_not_fit_lists_every_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_spaces.odd")
    module.space = lambda trial, job: {"predictor.gain": trial.suggest_float("predictor.gain", 0.0, 1.0)}  # type: ignore[attr-defined]
    module.presets = lambda job: {
        "empty": {},
        "high": {"predictor.gain": 2.0},
        "other": {"predictor.gain": 0.5, "x": 1},
    }  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_spaces", types.ModuleType("my_spaces"))
    monkeypatch.setitem(sys.modules, "my_spaces.odd", module)
    with pytest.raises(ConfigError) as caught:
        load_space(JobConfig(search=SearchConfig(space="my_spaces.odd")))
    assert len(caught.value.problems) == 3


def test_a_space_may_search_any_setting_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(trial: Any, job: JobConfig) -> dict[str, Any]:
        return {
            "full_steps": trial.suggest_int("full_steps", 1, 20),
            "predictor": trial.suggest_categorical("predictor", ["ema_nesterov", "snoo"]),
        }

    module = types.ModuleType("my_spaces")
    module.space, module.presets = ask, lambda job: {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tune_spaces.wide", module)
    job = JobConfig(search=SearchConfig(space="wide"), hybrid=HybridConfig(prediction_horizon=7, correct_steps=2))
    space = load_space(job)
    assert space.longest_cycle(job.hybrid) == 20 + 7 + 2
    assert settings(job, {"full_steps": 3, "predictor": "snoo"}).predictor.name == "snoo"
    assert settings(job, {"predictor.gain": 2}).predictor.options["gain"] == 2.0


def test_a_space_whose_presets_do_not_suit_the_predictor_is_named() -> None:
    job = JobConfig(search=SearchConfig(space="slow_momentum"), hybrid=HybridConfig(predictor="ema_nesterov"))
    with pytest.raises(
        ConfigError, match=r"search.space does not suit hybrid.predictor ema_nesterov: in its preset .*"
    ):
        load_space(job).preset_cycle(job.hybrid)


def test_grace_is_warmup_full_and_three_of_the_longest_cycles_among_the_presets() -> None:
    job = JobConfig(train=TrainConfig(steps=2000), hybrid=HybridConfig(warmup_steps=50, full_steps=5, correct_steps=1))
    space = load_space(job)
    assert space.preset_cycle(job.hybrid) == 5 + 200 + 0 + 1  # quick
    assert grace_steps(job, space) == 50 + 5 + 3 * 206
    longest = 5 + 200 + 199 + 1  # a real step after each predicted one but the last
    assert space.longest_cycle(job.hybrid) == longest
    assert replace(space, presets={}).preset_cycle(job.hybrid) == longest
    mine = replace(job, search=SearchConfig(grace_steps=7))
    assert grace_steps(mine, space) == 7


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_job_stops_bad_trials_in_the_first_half_but_no_typical_one_before_three_cycles(
    path: Path,
) -> None:
    job = read_job(path)
    space = load_space(job)
    grace, first = grace_steps(job, space), job.hybrid.warmup_steps + job.hybrid.full_steps
    assert grace < job.train.steps / 2
    ask = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask
    cycles = [settings(job, space.ask(ask(), job)).cycle_steps for _ in range(200)]
    assert sorted(cycles)[180] * 3 <= grace - first  # nine trials in ten
    assert max(cycles) <= grace - first


_CONTROLLER = SimpleNamespace(get_live_trials=list)


class _Trial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def stopped_at(scheduler: Any, step: int, *, inert: int = 0) -> bool:
    """Whether a trial is stopped at that step after four others that were much better.

    Args:
        inert: whether the others hardly predict.
    """
    *good, bad = (_Trial(f"{step} {number}") for number in range(5))
    for trial in (*good, bad):
        scheduler.on_trial_add(_CONTROLLER, trial)
    for trial in good:
        scheduler.on_trial_result(_CONTROLLER, trial, {"step": step, "objective": 1.0, "inert": inert})
        scheduler.on_trial_complete(_CONTROLLER, trial, {"step": 600, "objective": 1.0, "inert": inert})
    return bool(scheduler.on_trial_result(_CONTROLLER, bad, {"step": step, "objective": 0.0, "inert": 0}) == "STOP")


def test_trials_are_stopped_at_the_rungs_that_a_plan_names_and_late_ones_finish() -> None:
    job = replace(job_of(600), search=SearchConfig(grace_steps=70))
    space = load_space(job)
    assert rungs(job, space) == [70, 140, 280]  # the next, 560, comes too late to save much
    stopped = [step for step in (69, 70, 140, 280, 500, 560) if stopped_at(build_scheduler(job, space), step)]
    assert stopped == [70, 140, 280]


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_hardly_predicts_stops_no_other_and_is_not_stopped(name: Any) -> None:
    """It is plain training, whose score is no measure for a setting that predicts."""
    job = replace(job_of(600), search=SearchConfig(grace_steps=70, scheduler=name))
    assert stopped_at(build_scheduler(job, load_space(job)), 140)
    scheduler: Any = build_scheduler(job, load_space(job))
    assert not stopped_at(scheduler, 140, inert=1)
    scheduler = build_scheduler(job, load_space(job))
    assert stopped_at(scheduler, 140)
    plain = _Trial("plain")
    scheduler.on_trial_add(_CONTROLLER, plain)
    assert scheduler.on_trial_result(_CONTROLLER, plain, {"step": 140, "objective": -9.0, "inert": 1}) == "CONTINUE"


def test_a_search_for_net_speedup_stops_no_trial_early() -> None:
    job = replace(job_of(600), objective=ObjectiveConfig(mode="net"))
    assert isinstance(build_scheduler(job, load_space(job)), FIFOScheduler)
    for name in ("asha", "median"):
        asked = replace(job, search=SearchConfig(scheduler=name))
        with pytest.raises(ConfigError, match=f"search.scheduler is '{name}' but objective.mode is 'net'"):
            check_search(asked, load_space(asked))


def test_a_run_ends_by_itself_and_never_at_the_schedulers_limit() -> None:
    job = job_of(600)
    scheduler = build_scheduler(job, load_space(job))
    assert isinstance(scheduler, AsyncHyperBandScheduler)
    assert scheduler._max_t == 601
    assert scheduler._time_attr == "step"


@pytest.mark.parametrize("name", ["median", "none"])
def test_the_other_schedulers_can_be_named(name: Any) -> None:
    job = replace(job_of(600), search=SearchConfig(scheduler=name))
    assert not isinstance(build_scheduler(job, load_space(job)), AsyncHyperBandScheduler)
