"""The same run on two workers of a real Ray Train: equal to one process, and whole again after a worker was killed."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from micro_jobs import micro_job
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, ResourcesConfig, RunConfig, TrainConfig
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.run_result import StepRecord
from hybrid_ray.study.commands import train_once
from hybrid_ray.training.loop import train
from hybrid_ray.training.ray_worker import Send, fit_with_workers
from hybrid_ray.training.reporter import NullReporter

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]

RUN = RunConfig(
    model=ModelConfig(preset="micro"),
    data=DataConfig(max_bytes=1_000_000, heldout_tokens=8192),
    train=TrainConfig(
        steps=30, batch_size=8, sequence_length=32, evaluations=2, calibration_steps=5, checkpoint_every=8
    ),
    hybrid=HybridConfig(warmup_steps=6, full_steps=4, correct_steps=2, prediction_horizon=3, confidence_threshold=0.0),
)


class Deed(NullReporter):
    """Rank 1 does something bad after step 17, in Predict, once."""

    def __init__(self, send: Send, *, marker: str, deed: str) -> None:
        self._marker, self._deed = Path(marker), deed

    def step(self, record: StepRecord) -> None:
        from ray.train import get_context

        if record.step == 17 and get_context().get_world_rank() == 1 and not self._marker.exists():
            self._marker.write_text(record.phase)
            if self._deed == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            torch.empty(2**60)


@pytest.fixture(autouse=True)
def sent_by_value() -> Iterator[None]:
    """Workers lack this file, so the reporter above has to travel whole."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def fit(folder: Path, **settings: Any):
    return fit_with_workers(
        replace(RUN, workers=2),
        directory=folder / "run",
        storage=folder / "storage",
        name="fit",
        resources=ResourcesConfig(workers=2),
        **settings,
    )


def test_a_killed_worker_costs_steps_and_the_result_is_that_of_one_process(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    result = fit(
        tmp_path,
        max_failures=1,
        reporter_factory=partial(Deed, marker=str(marker), deed="kill"),
    )
    alone = train(RUN)
    assert marker.read_text() == "predict"
    assert (result.status, result.steps) == ("finished", 30)
    assert result.replay.phases == alone.replay.phases
    assert [point.loss for point in result.curve] == pytest.approx([point.loss for point in alone.curve], rel=1e-6)
    assert result.heldout["test"].loss == pytest.approx(alone.heldout["test"].loss, rel=1e-6)
    assert result.tokens == alone.tokens
    assert (tmp_path / "run" / "steps.parquet").exists()


def test_train_prints_the_evaluations_of_several_workers_as_those_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = micro_job(tmp_path)
    printed = []
    for workers in (1, 2):
        there = replace(job, resources=ResourcesConfig(workers=workers))
        train_once(there, arm="baseline", directory=tmp_path / f"{workers}")
        printed.append([line.partition(":")[0] for line in capsys.readouterr().err.splitlines() if "step" in line])
    assert printed[0] == [f"  step {step}/60, {step} of them real" for step in (15, 30, 45, 60)]
    assert printed[1] == printed[0]


def test_out_of_memory_is_said_and_not_tried_again(tmp_path: Path) -> None:
    marker = tmp_path / "greedy"
    with pytest.raises(TrialOutOfMemory, match="micro_batch_size"):
        fit(tmp_path, max_failures=1, reporter_factory=partial(Deed, marker=str(marker), deed="ask"))
    assert not (tmp_path / "run" / "result.json").exists()
