"""The plan of a job: its cost and whether it fits, before anything starts."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from cpu_cost import cost
from micro_jobs import micro_job

from hybrid_ray.config import (
    BudgetConfig,
    CompareConfig,
    JobConfig,
    ModelConfig,
    ResourcesConfig,
    SearchConfig,
    TrainConfig,
)
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.runner import Task, execute_here
from hybrid_ray.ray_tune.cluster import Resources, resource_concurrency
from hybrid_ray.ray_tune.session_folder import temporary_root
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.run_cache import baseline_key
from hybrid_ray.study import plan as planner
from hybrid_ray.study.commands import train_once
from hybrid_ray.study.pipeline import run_study
from hybrid_ray.study.plan import plan, plan_concurrency, plan_memory, resolve_auto, run_cache
from hybrid_ray.study.run_counts import comparison_stages, stages
from hybrid_ray.study.stopping import Budget
from hybrid_ray.tasks import load_task
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.placement import choose_device


def test_a_plan_counts_the_runs_of_a_comparison(tmp_path: Path) -> None:
    """Two optimizers at three rates and the hybrid at three; two frontiers; 6 seeds, each with a baseline, the hybrid,
    equal steps, placebo, reversed and the peer.
    """
    compare = CompareConfig(interim_analyses=(3, 6), arms=("placebo", "reversed"), peers=("ademamix",))
    found = plan(micro_job(tmp_path, compare=compare))
    assert [(stage.name, stage.runs) for stage in found.compared] == [
        ("tuning", 9), ("frontiers", 12), ("6 seeds", 6 * 6),
    ]  # fmt: skip
    assert "6 seeds" in found.text


def test_the_comparison_for_a_gpu_fits_on_it_and_has_all_its_runs() -> None:
    """AdamW, AdEMAMix and slow momentum at five rates; two frontiers; on 6 seeds the two required controls as well."""
    text = ["data.corpus=stdlib", "data.tokenizer=bytes", "data.vocab_size=null", "data.max_bytes=4000000"]
    job = read_job(Path(__file__).parents[2] / "jobs/gpt2_124m_findings.yaml", text)
    assert (job.train.precision, job.train.compile, job.hybrid.predictor.name) == ("bf16", True, "slow_momentum")
    runs = {stage.name: (stage.runs, stage.steps) for stage in comparison_stages(job)}
    assert runs == {
        "tuning": (15, 10 * 2400 + 5 * 2000),
        "frontiers": (10, 2 * (1680 + 2040 + 2400 + 3240 + 4320)),
        "6 seeds": (30, 6 * (2400 + 4 * 2000)),
    }
    assert plan_memory(job, gibibytes=80.0).fits
    assert not plan_memory(job, gibibytes=4.0).fits


def test_where_every_cycle_predicts_the_real_steps_are_counted() -> None:
    job = read_job(Path(__file__).parents[2] / "jobs/local.yaml")
    search = next(stage for stage in stages(job) if stage.name == "search")
    assert search.steps == job.search.trials * job.train.steps * 5 // 6


def test_a_plan_counts_every_run(tmp_path: Path) -> None:
    found = plan(micro_job(tmp_path))
    runs = {stage.name: stage.runs for stage in found.stages}
    assert runs == {"frontier": 6, "search": 4, "confirmation": 3 * (1 + 1 * 3)}
    assert "compare" not in found.text.split("stopped")[0]
    assert found.stages[0].steps == 24 + 33 + 42 + 51 + 60 + 66
    assert found.total_seconds > 0
    assert not found.measured
    assert "estimated" in found.text
    assert "trials may be stopped early after 20 of 60 steps (asha, compared at 20, 40 by score)" in found.text


@pytest.mark.parametrize(
    "search, said",
    [
        ({"scheduler": "none"}, "no trial is stopped early"),
        ({"grace_steps": 60}, "no trial is stopped early: asha waits 60 steps"),
        ({"scheduler": "median", "grace_steps": 30}, "stopped early after 30 of 60 steps (median, compared by score)"),
    ],
)
def test_a_plan_says_when_trials_may_be_stopped(tmp_path: Path, search: dict[str, Any], said: str) -> None:
    assert said in plan(micro_job(tmp_path, search=SearchConfig(**search))).text


def test_a_cached_baseline_makes_the_estimate_a_measurement(tmp_path: Path) -> None:
    job = resolve_auto(micro_job(tmp_path))
    run = baseline(job.run())
    result = execute_here([Task(run=run, directory=tmp_path / "baseline")])[0]
    task = load_task(job.run())
    key = baseline_key(run, corpus=task.fingerprint, machine=machine(run, choose_device(run)))
    run_cache(job).store(key, tmp_path / "baseline")
    found = plan(micro_job(tmp_path))  # the job as written: auto settings are resolved in the same way
    assert found.measured
    assert found.step_seconds == result.step_seconds
    assert "measured" in found.text


@pytest.mark.parametrize(
    "resources, said",
    [
        (ResourcesConfig(workers=4, cpus_per_worker=1000), "need 4000"),
        (ResourcesConfig(gpus_per_worker=64.0), "1 workers x 64 GPUs"),
    ],
)
def test_what_can_not_be_had_is_refused_in_a_second_of_work(
    tmp_path: Path, resources: ResourcesConfig, said: str
) -> None:
    job = micro_job(tmp_path, resources=resources, train=TrainConfig(batch_size=4))

    def refused() -> None:
        with pytest.raises(ConfigError, match=said):
            plan(job)

    assert cost(refused) < 60  # the reference takes 16 ms


def test_what_does_not_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, cpus=2, free=20.0)
    train = TrainConfig(batch_size=65_536, sequence_length=1024, device="cpu")
    with pytest.raises(ConfigError, match=r"lower resources\.max_concurrent"):
        plan(micro_job(tmp_path, train=train, model=ModelConfig(preset="1.5B")))


def test_runs_side_by_side_are_as_many_as_fit_whole() -> None:
    def fit(cpus: float, gpus: float, **resources: float | int) -> int:
        return resource_concurrency(JobConfig(resources=ResourcesConfig(**resources)), Resources(cpus=cpus, gpus=gpus))

    assert fit(8, 0, workers=3) == 2
    assert fit(8, 0, max_concurrent=1) == 1
    assert fit(64, 8, workers=2, gpus_per_worker=1.0) == 4
    assert fit(64, 2, gpus_per_worker=0.4) == 4  # two on each GPU; a share cannot span two GPUs


class Machine:
    """The machine that the planner sees: processors, GPUs and GiB of free memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cpus: int, free: float) -> None:
        monkeypatch.setattr(planner, "local_resources", lambda: Resources(cpus=cpus, gpus=0))
        memory = psutil.virtual_memory()._replace(available=int(free * 2**30))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize(
    "cpus, free, trials, side_by_side",
    [
        (16, 64, 16, 4),  # a quarter of the trials, so that later ones can learn from earlier ones
        (16, 64, 4, 2),
        (16, 64, 200, 16),
        (16, 8, 200, 11),  # 7 GiB without Ray's part
        (16, 1, 200, 1),
        (2, 8, 16, 2),
    ],
)
def test_a_search_takes_what_memory_holds_and_leaves_trials_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int, free: float, trials: int, side_by_side: int
) -> None:
    Machine(monkeypatch, cpus=cpus, free=free)
    job = micro_job(tmp_path, resources=ResourcesConfig(), search=SearchConfig(trials=trials))
    assert plan(job).concurrency.runs == side_by_side


def test_a_number_of_runs_that_a_job_names_is_kept_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, cpus=16, free=8)
    assert plan(micro_job(tmp_path, resources=ResourcesConfig(max_concurrent=10))).concurrency.runs == 10
    with pytest.raises(ConfigError, match=r"16 runs .* lower resources\.max_concurrent"):
        plan(micro_job(tmp_path, resources=ResourcesConfig(max_concurrent=16)))
    Machine(monkeypatch, cpus=16, free=0.3)
    with pytest.raises(ConfigError, match=r"one run .* lower train\.micro_batch_size"):
        plan(micro_job(tmp_path, resources=ResourcesConfig()))


def test_a_comparison_learns_nothing_and_takes_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, cpus=10, free=64)
    assert plan_concurrency(resolve_auto(micro_job(tmp_path, resources=ResourcesConfig()))).runs == 10


def test_one_run_needs_room_for_one_and_carries_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, cpus=16, free=1)
    job = micro_job(tmp_path, resources=ResourcesConfig(max_concurrent=16))
    assert train_once(job, arm="baseline", directory=tmp_path / "run").status == "finished"
    assert read_json(tmp_path / "run" / "run.json")["train"]["device"] == resolve_auto(job).train.device


def test_a_long_temporary_path_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert temporary_root() == Path("/tmp")
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != Path("/tmp") and may(path, mode))
    job = micro_job(tmp_path)
    with pytest.raises(ConfigError, match=r"set TMPDIR to a folder whose path has at most 20 bytes"):
        run_study(job)
    assert not Path(job.studies_dir).exists()


def test_a_temporary_path_is_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="é" * 5, dir="/tmp") as folder:  # 18 characters, 23 bytes
        monkeypatch.setattr(tempfile, "tempdir", folder)
        assert temporary_root() == Path("/tmp")


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_temporary_folder_that_is_none_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    asked = tmp_path / what
    if what == "file":
        asked.touch()
    monkeypatch.setenv("TMPDIR", str(asked))
    job = micro_job(tmp_path)
    with pytest.raises(ConfigError, match=r"TMPDIR is '.*' but that is not a writable folder"):
        run_study(job)
    assert not Path(job.studies_dir).exists()


def test_budgets_are_told_in_words_when_they_are_used_up(tmp_path: Path) -> None:
    job = micro_job(tmp_path, resources=ResourcesConfig(gpus_per_worker=0.5))
    budget = Budget(replace(job, budget=BudgetConfig(gpu_hours=1.0)))
    budget.spend(3600)
    assert budget.used_up is None
    budget.spend(3600)
    assert budget.used_up == "the budget of 1 GPU-hours is used up"
    assert Budget(replace(job, budget=BudgetConfig(minutes=1e-9))).used_up is not None
    assert Budget(job).used_up is None
