"""A user's own scheduler, sampler, space, callbacks and arms: found by name, checked before anything starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from micro_jobs import micro_job, plain_result
from ray.tune.logger import CSVLoggerCallback
from ray.tune.schedulers import HyperBandScheduler

from hybrid_ray.config import CompareConfig, JobConfig, ObjectiveConfig, RunConfig
from hybrid_ray.config.jobfile import dump_job, job_from_dict, read_job, rung_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import Finished, check_arms, control
from hybrid_ray.ray_tune.checks import build_callbacks, check_search
from hybrid_ray.ray_tune.sampler import build_sampler
from hybrid_ray.ray_tune.scheduler import build_scheduler
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.ray_tune.submission.submit import on_the_cluster, take_along
from hybrid_ray.study.directory import identity

EXAMPLE = Path(__file__).parents[2] / "examples/own_search.yaml"


pytestmark = pytest.mark.usefixtures("path_as_it_was")


def searched(job: JobConfig, **search: Any) -> JobConfig:
    return replace(job, search=replace(job.search, **search))


def problems_of(job: JobConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check_search(job, load_space(job))
    return str(caught.value)


def checked(plain: dict[str, Any]) -> None:
    job = job_from_dict(plain)
    check_search(job, load_space(job))


def test_the_example_finds_its_parts_next_to_the_job_file(tmp_path: Path) -> None:
    job = read_job(EXAMPLE)
    space = load_space(job)
    check_search(job, space)
    check_arms(job)
    assert set(space.ranges) == {"full_steps", "prediction_horizon"}
    assert list(space.presets) == ["short"]
    assert type(build_scheduler(job, space)).__name__ == "StopFarBehind"
    sampler = build_sampler(job, seed=3)
    assert isinstance(sampler, optuna.samplers.TPESampler)
    assert [type(callback).__name__ for callback in build_callbacks(job)] == ["JsonLines", "CSVLoggerCallback"]
    (tmp_path / "copy.yaml").write_text(dump_job(job))
    assert read_job(tmp_path / "copy.yaml") == job
    assert read_job(tmp_path / "copy.yaml").folders == (str(EXAMPLE.parent),)


def test_its_file_travels_with_a_submitted_job(tmp_path: Path) -> None:
    job = read_job(EXAMPLE)
    take_along(job, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own_search.py"]
    assert on_the_cluster(job).folders == ()


def test_modules_that_only_a_rung_or_a_variant_names_are_found_and_travel_too(tmp_path: Path) -> None:
    (tmp_path / "large_task.py").write_text("")
    (tmp_path / "my_predictor.py").write_text("")
    (tmp_path / "job.yaml").write_text(
        "ladder: {rungs: {small: {}, large: {task.factory: 'large_task:Task'}}}\n"
        "compare: {variants: {own: {hybrid.predictor.name: 'my_predictor:Predictor'}}}\n"
    )
    job = read_job(tmp_path / "job.yaml")
    assert job.folders == (str(tmp_path),)
    assert rung_jobs(job)["large"].folders == (str(tmp_path),)
    (tmp_path / "sent").mkdir()
    take_along(job, tmp_path / "sent")
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {"large_task.py", "my_predictor.py"}


def test_ray_tunes_and_optunas_own_are_named_alike(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    job = searched(
        job,
        grace_steps=None,
        startup_trials=4,
        scheduler={"name": "ray.tune.schedulers:HyperBandScheduler", "reduction_factor": 4},
        sampler="optuna.samplers:RandomSampler",
        callbacks=("ray.tune.logger:CSVLoggerCallback",),
    )
    assert "train.checkpoint_every is 0" in problems_of(job)
    job = replace(job, train=replace(job.train, checkpoint_every=10))
    check_search(job, load_space(job))
    scheduler = build_scheduler(job, load_space(job))
    assert isinstance(scheduler, HyperBandScheduler)
    assert scheduler.metric == "objective"
    assert isinstance(build_callbacks(job)[0], CSVLoggerCallback)


PBT = {"name": "ray.tune.schedulers:PopulationBasedTraining", "hyperparam_mutations": {"gain": [1.0, 2.0]}}


@pytest.mark.parametrize(
    "search, said",
    [
        ({"scheduler": "ray.tune.schedulers:HyperBandScheduer"}, "did you mean 'HyperBandScheduler'"),
        ({"scheduler": "ray.tune.schedulers:ASHAScheduler", "grace_steps": 9}, "grace_steps is 9 but ray.tune"),
        ({"scheduler": {"name": "ray.tune.schedulers:FIFOScheduler", "x": 1}}, "search.scheduler.x is not an option"),
        ({"scheduler": PBT}, "changes running trials"),
        ({"scheduler": "optuna.samplers:RandomSampler"}, "makes a RandomSampler: it must make a TrialScheduler"),
        ({"scheduler": {"name": "asha", "reduction_factor": 3}}, "asha takes no options: leave reduction_factor out"),
        ({"scheduler": "hyperband"}, "must be one of asha, median, none, or package.module:Name"),
        ({"scheduler": {"reduction_factor": 3}}, "must be one of asha, median, none, or package.module:Name"),
        ({"sampler": "optuna.samplers:GridSampler"}, "has no search_space but optuna.samplers:GridSampler needs it"),
        ({"sampler": "no_such_module:Sampler"}, "there is no module no_such_module"),
        ({"callbacks": ("json:dumps",)}, "search.callbacks.0 has no obj but json:dumps needs it"),
        ({"callbacks": ("CSVLoggerCallback",)}, "callbacks is 'CSVLoggerCallback' but must be package.module:Name"),
    ],
)
def test_what_is_wrong_is_one_sentence_before_anything_starts(
    tmp_path: Path, search: dict[str, Any], said: str
) -> None:
    plain = yaml.safe_load(dump_job(micro_job(tmp_path)))
    plain["search"] |= {"grace_steps": None, "startup_trials": 4, **search}
    with pytest.raises(ConfigError) as caught:
        checked(plain)
    assert said in str(caught.value)


def test_a_sampler_that_can_not_do_several_objectives_is_found_out(tmp_path: Path) -> None:
    job = replace(micro_job(tmp_path), objective=ObjectiveConfig(mode="pareto"))
    check_search(searched(job, sampler="optuna.samplers:NSGAIISampler"), load_space(job))
    (tmp_path / "single.py").write_text(
        "import optuna\n"
        "class Single(optuna.samplers.RandomSampler):\n"
        "    def infer_relative_search_space(self, study, trial):\n"
        "        study.direction  # raises for several\n"
        "        return {}\n"
    )
    job = replace(searched(job, sampler="single:Single"), folders=(str(tmp_path),))
    assert "search.sampler single:Single fails: RuntimeError" in problems_of(job)


def test_a_scheduler_of_ones_own_defines_the_study_and_ours_may_change(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    space = load_space(job)
    assert identity(searched(job, scheduler="median"), space) == identity(job, space)
    own = searched(job, scheduler={"name": "ray.tune.schedulers:FIFOScheduler"})
    assert identity(own, space)["search"]["scheduler"] == {"name": "ray.tune.schedulers:FIFOScheduler"}


ARMS = """
from dataclasses import replace
from hybrid_ray.evaluation.arms import real_run

def half(hybrid): return real_run(hybrid.run, "half", hybrid.result.real_steps // 2)
def other_seed(hybrid): return replace(hybrid.run, seed=hybrid.run.seed + 1)
def nothing(hybrid): pass
def broken(hybrid): return 1 / 0
def long(run, result): return run
def placebo(hybrid): return hybrid.run
"""


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    (tmp_path / "my_arms.py").write_text(ARMS)
    run = RunConfig(seed=7, folders=(str(tmp_path),))
    done = plain_result(real=100, predicted=50)
    return Finished(run=run, result=done, path=Path("result.json"), baseline=plain_result())


def test_an_arm_of_ones_own_is_made_of_the_hybrid_and_called_by_its_function(finished: Finished) -> None:
    made = control("my_arms:half", finished)
    assert (made.arm, made.seed, made.train.steps, made.hybrid.predictor.name) == ("half", 7, 50, "none")


@pytest.mark.parametrize(
    "name, said",
    [
        ("other_seed", "changed seed but a control is paired with the hybrid"),
        ("nothing", "returned a NoneType but must return a RunConfig"),
        ("broken", "fails: ZeroDivisionError"),
    ],
)
def test_an_arm_that_can_not_be_made_says_why(finished: Finished, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        control(f"my_arms:{name}", finished)


def test_arms_are_checked_before_anything_starts(finished: Finished) -> None:
    job = JobConfig(
        folders=finished.run.folders, compare=CompareConfig(arms=("my_arms:halve", "my_arms:long", "placebo"))
    )
    with pytest.raises(ConfigError) as caught:
        check_arms(job)
    assert "compare.arms.0" in caught.value.problems[0]
    assert "did you mean 'half'" in caught.value.problems[0]
    assert "compare.arms.1 is 'my_arms:long' but it can't be called with the hybrid's run alone" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        CompareConfig(arms=("placebo", "my_arms:placebo", "nonsense"))
    assert "there already is an arm called placebo" in str(caught.value)
    assert "arms is 'nonsense' but must be one of equal_steps" in str(caught.value)
    with pytest.raises(ConfigError, match="functions have the same name"):
        CompareConfig(arms=("my_arms:half", "your_arms:half"))
