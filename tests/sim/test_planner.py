"""What a job will cost and whether it fits, decided before anything starts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import BudgetConfig, JobConfig, ModelConfig, ResourcesConfig, TrainConfig
from hybrid_ray.data import prepare
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluate.arms import baseline
from hybrid_ray.evaluate.cache import baseline_key
from hybrid_ray.evaluate.execute import Task, execute_here
from hybrid_ray.train.bench import choose_device
from hybrid_ray.train.fingerprint import machine
from hybrid_ray.tune.cluster import Resources, concurrency
from hybrid_ray.tune.limits import Budget
from hybrid_ray.tune.planner import plan, run_cache, settle


def test_a_plan_counts_every_run(tmp_path: Path) -> None:
    found = plan(micro_job(tmp_path))
    runs = {stage.name: stage.runs for stage in found.stages}
    assert runs == {"frontier": 6, "search": 4, "confirmation": 3 * (1 + 1 * 3)}
    assert found.stages[0].steps == 24 + 33 + 42 + 51 + 60 + 66
    assert found.total_seconds > 0
    assert not found.measured
    assert "estimated" in found.text


def test_a_cached_baseline_makes_the_estimate_a_measurement(tmp_path: Path) -> None:
    job = settle(micro_job(tmp_path))
    run = baseline(job.run())
    result = execute_here([Task(run=run, directory=tmp_path / "baseline")])[0]
    corpus = prepare(job.data)
    key = baseline_key(run, corpus=corpus.fingerprint, machine=machine(run, choose_device(run)))
    run_cache(job).store(key, tmp_path / "baseline")
    found = plan(micro_job(tmp_path))  # the job as it is written: what the machine decides is decided alike
    assert found.measured
    assert found.step_seconds == result.calibration
    assert "measured" in found.text


@pytest.mark.parametrize(
    "resources, said",
    [
        (ResourcesConfig(workers=4, cpus_per_worker=1000), "need 4000"),
        (ResourcesConfig(gpus_per_worker=64.0), "1 workers x 64 GPUs"),
    ],
)
def test_what_can_not_be_had_is_refused_in_under_a_second(
    tmp_path: Path, resources: ResourcesConfig, said: str
) -> None:
    job = micro_job(tmp_path, resources=resources, train=TrainConfig(batch_size=4))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=said):
        plan(job)
    assert time.perf_counter() - start < 1


def test_an_unknown_model_is_a_mistake_in_the_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.preset is 'giga'"):
        plan(micro_job(tmp_path, model=ModelConfig(preset="giga")))


def test_what_does_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    train = TrainConfig(batch_size=65_536, sequence_length=1024, device="cpu")
    with pytest.raises(ConfigError, match=r"lower resources\.max_concurrent"):
        plan(micro_job(tmp_path, train=train, model=ModelConfig(preset="1.5B")))


def test_runs_side_by_side_are_as_many_as_fit_whole() -> None:
    def fit(cpus: float, gpus: float, **resources: float | int) -> int:
        return concurrency(JobConfig(resources=ResourcesConfig(**resources)), Resources(cpus=cpus, gpus=gpus))

    assert fit(8, 0, workers=3) == 2
    assert fit(8, 0, max_concurrent=1) == 1
    assert fit(64, 8, workers=2, gpus_per_worker=1.0) == 4
    assert fit(64, 2, gpus_per_worker=0.4) == 4  # two on each GPU; a share does not reach over two of them


def test_budgets_are_told_in_words_when_they_are_used_up(tmp_path: Path) -> None:
    job = micro_job(tmp_path, resources=ResourcesConfig(gpus_per_worker=0.5))
    budget = Budget(replace(job, budget=BudgetConfig(gpu_hours=1.0)))
    budget.spend(3600)
    assert budget.used_up is None
    budget.spend(3600)
    assert budget.used_up == "the budget of 1 GPU-hours is used up"
    assert Budget(replace(job, budget=BudgetConfig(minutes=1e-9))).used_up is not None
    assert Budget(job).used_up is None
