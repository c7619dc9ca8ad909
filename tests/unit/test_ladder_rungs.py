"""A ladder's rungs, what one hands to the next, and the rank correlation between two."""

from dataclasses import replace
from typing import Any

import pytest

from hybrid_ray.config import JobConfig, LadderConfig, SearchConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, keep_share, read_job, rung_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.ladder.correlation import rank_correlation, same_order
from hybrid_ray.ladder.rungs import learning_rate, width_of
from hybrid_ray.ladder.transfer import Carried, carry
from hybrid_ray.ray_tune.space import load_space

SPACE = {
    "prediction_horizon": {"kind": "IntDistribution", "low": 1, "high": 120, "log": True, "step": 1},
    "correction_interval": {"kind": "IntDistribution", "low": 0, "high": 24, "log": False, "step": 1},
    "predictor.gain": {"kind": "FloatDistribution", "low": 0.25, "high": 5.0, "log": True, "step": None},
}
LADDER = LadderConfig(best=2, others=1, margin=0.1)


def ladder(**rungs: Any) -> dict[str, Any]:
    return {"train": {"steps": 600}, "ladder": {"rungs": rungs}}


def test_a_rung_is_the_job_with_its_settings_over_it_and_fewer_trials_than_the_one_below() -> None:
    values = ladder(
        small={},
        medium={"model.preset": "pico", "train.steps": 1200},
        large={"search.trials": 3, "hybrid.predictor.gain": 1.5, "train.steps": 2400, "hybrid.prediction_horizon": 7},
    )
    values |= {"hybrid": {"correction_interval": 4, "full_steps": 6}, "name": "climb"}
    jobs = rung_jobs(job_from_dict(values))
    assert [job.search.trials for job in jobs.values()] == [16, 8, 3]
    assert {job.studies_dir for job in jobs.values()} == {"studies/climb"}
    assert [job.name for job in jobs.values()] == ["small", "medium", "large"]
    assert jobs["medium"].model.preset == "pico"
    assert [job.hybrid.correction_interval for job in jobs.values()] == [4, 8, 16]
    assert [job.hybrid.full_steps for job in jobs.values()] == [6, 6, 6]
    assert [job.hybrid.prediction_horizon for job in jobs.values()] == [5, 10, 7]  # the last one's is its own
    assert jobs["large"].hybrid.predictor.options["gain"] == 1.5
    assert all(job.ladder == LadderConfig() for job in jobs.values())


def test_a_rung_keeps_the_predictor_that_it_gives_and_may_not_replace_a_section_by_a_number() -> None:
    slow = {"name": "slow_momentum", "beta3": 0.9}
    jobs = rung_jobs(job_from_dict(ladder(small={}, large={"train.steps": 1200, "hybrid.predictor": slow})))
    assert jobs["large"].hybrid.predictor.options["beta3"] == 0.9
    with pytest.raises(ConfigError, match=r"ladder\.rungs\.large: train"):
        job_from_dict(ladder(large={"train": 5}))


def test_any_task_climbs_by_its_options() -> None:
    values = ladder(narrow={"task.options.width": 16}, wide={"task.options.width": 64})
    jobs = rung_jobs(job_from_dict(values | {"task": {"factory": "my_task:MyTask"}}))
    assert [dict(job.task.options) for job in jobs.values()] == [{"width": 16}, {"width": 64}]
    assert width_of(jobs["wide"], "task.options.width") == 64
    with pytest.raises(ConfigError, match=r"ladder.width_setting is 'task.options.height', which is None on rung wide"):
        width_of(jobs["wide"], "task.options.height")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rungs": {"a": {"train.stepz": 10}}}, "ladder.rungs.a: train.stepz is not a setting"),
        ({"rungs": {"a": {"objective.mode": "net"}}}, "objective.mode is the same on all rungs"),
        ({"rungs": {"a/b": {}}}, "a folder gets this name"),
        ({"rungs": {"tuning": {}}}, "has a folder 'tuning' of its own"),
        ({"rungs": {"a": {"train.steps.deep": 10}}}, "steps is a single value"),
        ({"rungs": {"a": {}}, "from_nothing": ["a"]}, "must name rungs above the first"),
        ({"rungs": {"a": {"train.learning_rate": 0.1}}, "learning_rate": "width_rule"}, "leave one of them out"),
        ({"lr_factors": [1.0]}, "at least 2 different factors"),
    ],
)
def test_a_wrong_ladder_is_refused_with_the_setting_and_the_rule(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict({"ladder": change})
    assert said in str(caught.value)


def test_a_job_with_a_ladder_survives_a_round_trip_and_one_without_does_not_mention_it(tmp_path: Any) -> None:
    job = job_from_dict(ladder(small={}, large={"train.steps": 1200}))
    (tmp_path / "study.yaml").write_text(dump_job(job))
    assert read_job(tmp_path / "study.yaml") == job
    assert "ladder" not in dump_job(JobConfig())


def test_horizon_interval_and_memory_keep_their_share_of_the_run() -> None:
    shares = LadderConfig().shares_of_run

    def doubled(name: str, value: Any) -> Any:
        return keep_share(name, value, factor=2.0, shares=shares)

    assert doubled("prediction_horizon", 5) == 10
    assert doubled("correction_interval", 0) == 0  # never stays never
    assert keep_share("prediction_horizon", 1, factor=0.2, shares=shares) == 1
    assert doubled("full_steps", 5) == 5
    assert doubled("predictor.gain", 2.0) == 2.0
    assert doubled("predictor.time_constant", 40.0) == 80.0
    assert 1 / (1 - doubled("predictor.beta3", 0.99)) == pytest.approx(200)
    assert keep_share("predictor.beta3", 0.996, factor=1.0, shares=shares) == 0.996


def row(number: int, objective: float, horizon: int, interval: int, gain: float, **changes: Any) -> dict[str, Any]:
    params = {"prediction_horizon": horizon, "correction_interval": interval, "predictor.gain": gain}
    return {
        "number": number,
        "state": "COMPLETE",
        "diverged": 0,
        "inert": 0,
        "equal_to": None,
        "objective": objective,
        "score": objective,
        "speedup": 1.2,
        "degradation": 0.01,
        **{f"params_{name}": value for name, value in params.items()},
        **changes,
    }


ROWS = [
    row(0, 0.90, 50, 12, 5.0),
    row(1, 1.10, 10, 4, 1.0),
    row(2, 1.05, 16, 2, 2.0),
    row(3, 1.00, 11, 3, 1.2),
    row(4, 0.95, 14, 4, 1.5),
    row(5, 2.00, 3, 0, 1.0, diverged=1),
    row(6, 1.50, 3, 0, 1.0, inert=1),
    row(7, 1.40, 3, 0, 1.0, state="FAIL"),
]


def jobs(below: int = 600, above: int = 1200, trials: int = 6) -> tuple[JobConfig, JobConfig]:
    return (
        JobConfig(name="small", train=TrainConfig(steps=below)),
        JobConfig(name="large", train=TrainConfig(steps=above), search=SearchConfig(trials=trials)),
    )


def test_the_best_settings_go_up_first_then_others_from_inside_their_ranges() -> None:
    below, above = jobs()
    found = carry(ROWS, below=below, above=above, ladder=LADDER, space=SPACE)
    assert list(found.first) == ["small trial 1", "small trial 2", "small trial 4"]  # trial 0 is outside
    assert found.origins == {"small trial 1": 1, "small trial 2": 2, "small trial 4": 4}
    assert found.first["small trial 1"] == {
        "prediction_horizon": 20,
        "correction_interval": 8,
        "predictor.gain": 1.0,
    }
    low, high = found.ranges["prediction_horizon"]  # 20 and 32, widened by a tenth of log(120)
    assert (low, high) == (12, 52)
    assert found.ranges["correction_interval"] == (1, 11)
    assert found.ranges["predictor.gain"] == pytest.approx((20**-0.1, 2 * 20**0.1))
    assert Carried.from_dict(found.as_dict()) == found


def test_ranges_stay_inside_the_space_and_few_trials_take_only_the_best() -> None:
    below, above = jobs(above=6000, trials=2)
    found = carry(ROWS, below=below, above=above, ladder=LADDER, space=SPACE)
    assert found.ranges["prediction_horizon"][1] == 120
    assert list(found.first) == ["small trial 1", "small trial 2"]
    assert all(values["prediction_horizon"] <= 120 for values in found.first.values())


def test_nothing_is_carried_from_a_rung_on_which_no_trial_predicted() -> None:
    below, above = jobs()
    assert carry(ROWS[5:], below=below, above=above, ladder=LADDER, space=SPACE) == Carried(
        first={}, origins={}, ranges={}
    )


def test_the_narrowed_space_is_that_of_the_job_and_carried_settings_replace_the_presets() -> None:
    job = JobConfig()
    first = {"carried": {"confidence_threshold": 0.1, "prediction_horizon": 4, "correction_interval": 1}}
    narrow = {"prediction_horizon": (2.0, 8.0), "confidence_threshold": (0.0, 0.2)}
    space = load_space(replace(job, search=replace(job.search, ranges=narrow, first=first)))
    assert (space.ranges["prediction_horizon"]["low"], space.ranges["prediction_horizon"]["high"]) == (2, 8)
    assert space.ranges["confidence_threshold"]["high"] == 0.2
    assert space.ranges["correction_interval"] == load_space(job).ranges["correction_interval"]
    assert dict(space.presets) == first
    left = load_space(replace(job, search=replace(job.search, ranges={"prediction_horizon": (2.0, 8.0)})))
    assert set(left.presets) == {"quick", "short_cycles"} & set(left.presets)
    assert all(2 <= values["prediction_horizon"] <= 8 for values in left.presets.values())


@pytest.mark.parametrize(
    "search, said",
    [
        ({"ranges": {"gain": [1, 2]}}, "search.ranges names 'gain', which is not a numeric setting of the space"),
        ({"ranges": {"prediction_horizon": [5, 5000]}}, "must be inside the space's"),
        ({"ranges": {"prediction_horizon": [2.5, 5]}}, "is a whole number"),
        ({"first": {"mine": {"prediction_horizon": 5}}}, "has no value for confidence_threshold"),
    ],
)
def test_ranges_and_settings_that_do_not_fit_the_space_are_refused(search: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_space(job_from_dict({"search": search}))
    assert said in str(caught.value)


def test_a_width_rule_changes_the_rate_by_the_ratio_of_widths(tmp_path: Any) -> None:
    values = ladder(small={"model.preset": "pico"}, large={"model.preset": "pico64"})
    values["ladder"] |= {"learning_rate": "width_rule"}
    values["train"] |= {"learning_rate": 0.01}
    job = job_from_dict(values)
    rungs = rung_jobs(job)
    rates = [learning_rate(job, rung, below=None, directory=tmp_path)["learning_rate"] for rung in rungs.values()]
    assert rates == [0.01, 0.005]


def test_the_rank_correlation_says_how_unsure_a_few_settings_leave_it() -> None:
    perfect = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])
    assert (perfect.rho, perfect.high) == (1.0, 1.0)
    assert perfect.p == pytest.approx(1 / 24)
    assert perfect.low is not None
    assert perfect.low < 0  # four settings can't show it, even in perfect order
    assert not perfect.shown
    many = rank_correlation(list(range(7)), list(range(7)))
    assert many.shown
    reverse = rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert (reverse.rho, reverse.low, reverse.p) == (-1.0, -1.0, 1.0)
    long = rank_correlation(list(range(20)), [value + (3 if value % 2 else -3) for value in range(20)])
    assert long.rho is not None
    assert long.low is not None
    assert long.high is not None
    assert 0.5 < long.low < long.rho < long.high < 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0, 1.0]])
def test_too_few_or_equal_values_have_no_correlation(values: list[float]) -> None:
    found = rank_correlation(values, values)
    assert (found.rho, found.p, found.shown) == (None, None, False)


def test_only_pairs_that_differ_by_more_than_the_noise_are_counted() -> None:
    found = same_order([1.0, 1.1, 1.5], [2.0, 1.9, 2.5], [0.05] * 3, [0.05] * 3)
    assert (found.same, found.of) == (2, 2)
    assert same_order([1.0, 1.5], [2.0, 1.0], [0.05] * 2, [0.05] * 2).same == 0
