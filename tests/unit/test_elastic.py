"""A run goes on from its checkpoint on another number of workers, to the same loss up to rounding."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from micro_runs import CYCLES, Listener, micro_run
from rank_pool import RankPool

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.run_result import RunResult, StepRecord
from hybrid_ray.study.commands import check_directory
from hybrid_ray.training.checkpoint.shards import divide
from hybrid_ray.training.loop import train

pytestmark = pytest.mark.slow
RUN = micro_run(hybrid=CYCLES, steps=36, batch_size=12, evaluations=2, checkpoint_every=6)


class Dies(Listener):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._at = step

    def step(self, record: StepRecord) -> None:
        if record.step == self._at:
            raise ConnectionError


def until(run: RunConfig, directory: Path, step: int) -> None:
    """Train until the worker dies."""
    with pytest.raises(ConnectionError):
        train(run, directory=directory, reporter=Dies(step))


def to_the_end(run: RunConfig, directory: Path) -> RunResult:
    return train(run, directory=directory)


def with_workers(workers: int, way: str, **train_settings: Any) -> RunConfig:
    return replace(RUN, workers=workers, train=replace(RUN.train, parallel=way, **train_settings))


@pytest.fixture(scope="module")
def three() -> Iterator[RankPool]:
    pool = RankPool(3)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def whole() -> RunResult:
    return train(RUN)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_workers_then_one_then_three_end_at_the_same_loss(
    way: str, ranks: RankPool, three: RankPool, whole: RunResult, tmp_path: Path
) -> None:
    ranks.run(until, with_workers(2, way), tmp_path, 11, timeout=300.0)
    until(with_workers(1, way), tmp_path, 22)
    first, *others = three.run(to_the_end, with_workers(3, way), tmp_path, timeout=300.0)
    assert all(result.curve == first.curve for result in others)
    assert first.status == "finished"
    assert first.replay.phases == whole.replay.phases
    assert [point.loss for point in first.curve] == pytest.approx([point.loss for point in whole.curve], rel=1e-5)
    assert first.tokens == whole.tokens


def test_sharded_on_two_then_on_three_with_a_slow_average(three: RankPool, ranks: RankPool, tmp_path: Path) -> None:
    """AdEMAMix keeps three tensors per parameter; the predictor has buffers of its own."""
    hybrid = replace(CYCLES, predictor={"name": "slow_momentum", "alpha": 4.0, "beta3": 0.9})  # type: ignore[arg-type]
    run = replace(with_workers(2, "fsdp", optimizer="ademamix"), hybrid=hybrid)
    ranks.run(until, run, tmp_path, 16, timeout=300.0)
    resumed = three.run(to_the_end, replace(run, workers=3), tmp_path, timeout=300.0)[0]
    plain = train(replace(run, workers=1))
    assert [point.loss for point in resumed.curve] == pytest.approx([point.loss for point in plain.curve], rel=1e-5)


def test_from_one_worker_to_two_that_share_the_model(ranks: RankPool, whole: RunResult, tmp_path: Path) -> None:
    until(with_workers(1, "ddp"), tmp_path, 16)
    resumed = ranks.run(to_the_end, with_workers(2, "fsdp"), tmp_path, timeout=300.0)[0]
    assert [point.loss for point in resumed.curve] == pytest.approx([point.loss for point in whole.curve], rel=1e-5)


def test_the_command_goes_on_with_other_workers_and_with_no_other_change(tmp_path: Path) -> None:
    until(RUN, tmp_path, 11)
    check_directory(tmp_path, with_workers(2, "fsdp"))
    with pytest.raises(ConfigError, match="other settings"):
        check_directory(tmp_path, with_workers(1, "ddp", learning_rate=0.5))


def test_state_in_8_bits_is_not_joined_wrongly() -> None:
    """`restore` tells of it as a CheckpointError that names the number of workers to go on with."""
    torchao = pytest.importorskip("torchao.optim.subclass_8bit")
    weight = torch.nn.Parameter(torch.zeros(256, 64))
    chunk = torchao.OptimState8bit.zeros((128, 64), signed=True, block_size=256)
    states = [{"parts": {"optimizer": {"state": {0: {"exp_avg": chunk}}}}} for _ in range(2)]
    with pytest.raises(RuntimeError, match="OptimState8bit"):
        divide(states, torch.optim.AdamW([weight]), on_host=False)
