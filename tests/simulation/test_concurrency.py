"""How many runs fit into memory in parallel, with which micro-batch, and which settings make a run smaller."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from micro_jobs import micro_job

from hybrid_ray.cli import main
from hybrid_ray.config import HybridConfig, JobConfig, ResourcesConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job, read_job
from hybrid_ray.errors import ConfigError
from hybrid_ray.memory.advice import advice
from hybrid_ray.memory.estimate import MemoryNeed, memory_need
from hybrid_ray.memory.micro_batch import SHARE, batch_text, resolve_micro_batch
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.study.commands import train_once
from hybrid_ray.study.concurrency import memory_concurrency, sharing
from hybrid_ray.study.plan import plan, plan_memory, resolve_auto
from hybrid_ray.tasks import load_task

OPEN = TrainConfig(steps=60, batch_size=16, micro_batch_size="auto", sequence_length=16, threads=1)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many bytes of memory this machine has free."""

    def say(size: float) -> None:
        memory = psutil.virtual_memory()._replace(available=int(size))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    return say


def needed(job: JobConfig, micro: int) -> int:
    job = replace(job, train=replace(job.train, micro_batch_size=micro))
    return memory_need(job.run(), load_task(job.run())).total


def test_an_open_micro_batch_is_the_largest_that_fits_and_the_batch_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = micro_job(tmp_path, train=OPEN)
    with caplog.at_level(logging.INFO, "hybrid_ray"):
        resolved = resolve_micro_batch(job, int(needed(job, 4) / SHARE) + 1)
    assert resolved.train.micro_batch_size == 4
    assert needed(job, 4) < needed(job, 8)
    assert batch_text(resolved.run()) == "effective batch 16 = 4 x 4 x 1 worker"
    assert "effective batch 16 = 4 x 4 x 1 worker" in caplog.text
    assert resolve_micro_batch(job, 2**40).train.micro_batch_size == 16
    assert resolve_micro_batch(job, 0).train.micro_batch_size == 1  # refused later, when it is fitted, with advice


def test_workers_split_the_batch_before_it_is_cut(tmp_path: Path) -> None:
    job = micro_job(tmp_path, train=OPEN, resources=ResourcesConfig(workers=2))
    assert batch_text(resolve_micro_batch(job, 2**40).run()) == "effective batch 16 = 1 x 8 x 2 workers"


def test_what_is_settled_is_in_the_job_and_stays(tmp_path: Path, free: Callable[[float], None]) -> None:
    job = resolve_auto(micro_job(tmp_path, train=OPEN))
    assert job.train.micro_batch_size == 16
    (tmp_path / "job.yaml").write_text(dump_job(job))
    free(2**20)
    assert resolve_auto(read_job(tmp_path / "job.yaml")) == job


def test_a_run_gone_on_with_keeps_the_micro_batch_it_began_with(tmp_path: Path, free: Callable[[float], None]) -> None:
    job, directory = micro_job(tmp_path, train=OPEN), tmp_path / "run"
    train_once(job, arm="baseline", directory=directory)
    assert read_json(directory / "run.json")["train"]["micro_batch_size"] == 16
    (directory / "result.json").unlink()  # as after a kill
    one = (needed(job, 1) + 2) / SHARE
    free(2**30 + one * 1.0001)  # without Ray's part: room for one sequence at a time
    assert resolve_auto(job).train.micro_batch_size != 16
    train_once(job, arm="baseline", directory=directory)
    assert read_json(directory / "run.json")["train"]["micro_batch_size"] == 16


def test_a_cluster_cannot_be_looked_into(tmp_path: Path) -> None:
    job = micro_job(tmp_path, train=OPEN, resources=ResourcesConfig(address="auto"))
    with pytest.raises(ConfigError, match=r"micro_batch_size is 'auto' but the job runs on a cluster.*write a number"):
        resolve_auto(job)


def test_advice_goes_from_cheap_to_dear_and_each_step_helps(tmp_path: Path) -> None:
    job = micro_job(tmp_path, train=replace(OPEN, micro_batch_size=16, device="cuda", precision="bf16"))
    before, measures = needed(job, 16), list(advice(job, load_task(job.run()), 0))
    sizes = [measure.need.total for measure in measures]
    assert [before, *sizes] == sorted([before, *sizes], reverse=True)
    settings = [next(iter(measure.settings)) for measure in measures]
    assert settings[0] == "train.micro_batch_size"
    assert settings[-1] == "train.optimizer"
    assert "hybrid.buffer_device" in settings
    assert measures[-1].need.optimizer == 0  # in host memory
    enough = [measure.need.total for measure in advice(job, load_task(job.run()), sizes[1])]
    assert enough == sizes[:2]


def test_host_memory_is_no_advice_where_there_is_no_other(tmp_path: Path) -> None:
    """For a job that already follows all other advice."""
    small = TrainConfig(batch_size=1, sequence_length=16, weights="bf16", precision="bf16", optimizer="sgd")
    job = micro_job(tmp_path, train=small, hybrid=HybridConfig(buffer_dtype="bfloat16"))
    job = replace(job, model=replace(job.model, loss_chunks=8, activation_checkpointing=True))

    def settings(device: Any) -> list[str]:
        there = replace(job, train=replace(job.train, device=device))
        return [value for measure in advice(there, load_task(job.run()), 0) for value in measure.settings.values()]

    assert settings("cpu") == []
    assert settings("cuda") == ["host"]


def test_host_memory_limits_runs_on_gpus_too(tmp_path: Path, free: Callable[[float], None]) -> None:
    job = micro_job(tmp_path, train=TrainConfig(device="cuda"), resources=ResourcesConfig(gpus_per_worker=1))
    need, task, cuda = MemoryNeed(weights=2**20, host=2**30), load_task(job.run()), torch.device("cpu")
    free(4.5 * 2**30)  # 3.5 GiB without Ray's part
    assert memory_concurrency(job, task, need, cuda, most=8).runs == 3
    free(1.5 * 2**30)
    with pytest.raises(ConfigError, match=r"1 run of micro on a GPU need 1\.0 GiB of host memory for each worker"):
        memory_concurrency(job, task, need, cuda, most=8)


def test_five_runs_share_a_gpu_of_which_each_has_a_fifth(tmp_path: Path) -> None:
    def runs(share: float) -> int:
        return sharing(micro_job(tmp_path, resources=ResourcesConfig(gpus_per_worker=share)), 8)

    assert [runs(share) for share in (0.2, 0.25, 0.3, 1.0)] == [5, 4, 3, 1]


def test_what_does_not_fit_is_told_how_it_would(tmp_path: Path, free: Callable[[float], None]) -> None:
    free(610 * 2**20)
    job = micro_job(tmp_path, train=TrainConfig(batch_size=256, sequence_length=64), resources=ResourcesConfig())
    with pytest.raises(ConfigError) as caught:
        plan(job)
    assert "one run of micro needs" in caught.value.problems[0]
    assert any("--set train.micro_batch_size=1" in line for line in caught.value.problems)
    assert "together they fit into 610.0 MiB" in caught.value.problems[-1]


def test_another_device_can_be_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = micro_job(tmp_path, train=replace(OPEN, device="cuda", precision="bf16"))  # with or without a GPU
    assert plan_memory(job, gibibytes=80).job.train.micro_batch_size == 16
    path = tmp_path / "job.yaml"
    path.write_text(dump_job(job))
    assert main(["plan", str(path), "--memory", "80"]) == 0
    told = capsys.readouterr().out
    assert "effective batch 16 = 1 x 16 x 1 worker" in told
    assert "one worker fits into 80.0 GiB" in told
    assert main(["plan", str(path), "--memory", "0.1"]) == 2
    assert "all of these together do not fit into 102.4 MiB" in capsys.readouterr().out


@pytest.mark.parametrize("micro", [None, 4])
def test_a_plan_shows_parts_that_add_up(tmp_path: Path, micro: Any) -> None:
    found = plan(micro_job(tmp_path, train=replace(OPEN, micro_batch_size=micro)))
    need = found.concurrency.need
    assert sum(need.parts.values()) == need.total == need.allocated + need.process
    assert all(f"  {name:<14}" in found.text for name in need.parts)
    assert "peak in" in found.text
