"""Whole runs in little memory: they go on bit for bit, ranks stay together, and predictions work on bf16 weights."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrid_toy import Batches, flat, quick, toy_model
from micro_runs import CYCLES, Listener, micro_run
from rank_pool import RankPool
from rank_scenarios import Job, Training
from safetensors.torch import load_file

from hybrid_ray.config import HybridConfig, TrainConfig
from hybrid_ray.config.jobfile import job_from_dict
from hybrid_ray.errors import ConfigError
from hybrid_ray.method import HybridTrainer
from hybrid_ray.optim import build_optimizer
from hybrid_ray.run_result import StepRecord
from hybrid_ray.training.loop import train

BF16 = {"weights": "bf16", "precision": "bf16"}


class StopsAt(Listener):
    """SIGTERM in the middle of a step's report."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._at = step

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(max((directory / "checkpoint").glob("step-*")) / "weights.safetensors")


@pytest.mark.parametrize(
    "settings, hybrid",
    [
        ({**BF16}, {}),
        ({**BF16, "optimizer_device": "host"}, {"buffer_device": "host", "buffer_dtype": "bfloat16"}),
        ({}, {"offload_optimizer": True}),
        ({**BF16, "optimizer": "adamwspam"}, {"offload_optimizer": True}),
    ],
    ids=["bf16", "bf16, all on the host", "offload", "bf16, offload"],
)
def test_a_run_stopped_in_predict_goes_on_to_the_same_bits(
    settings: dict[str, Any], hybrid: dict[str, Any], tmp_path: Path
) -> None:
    run = micro_run(hybrid=replace(CYCLES, **hybrid), steps=30, evaluations=1, checkpoint_every=100, **settings)
    whole = train(run, directory=tmp_path / "whole")
    stopped = train(run, directory=tmp_path / "stopped", reporter=StopsAt(17))
    assert (stopped.status, whole.replay.phases[16]) == ("stopped", "P")
    result = train(run, directory=tmp_path / "stopped")
    mine, theirs = weights_of(tmp_path / "stopped"), weights_of(tmp_path / "whole")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert {tensor.dtype for tensor in mine.values()} == {torch.bfloat16 if settings else torch.float32}
    assert result.curve[-1].loss == whole.curve[-1].loss
    if "offload_optimizer" in hybrid:
        assert result.part_seconds["offload"] > 0.0
        moved = [one.statistics["offload"]["moved_bytes"] for one in (whole, result)]
        jumps = whole.statistics["jumps"]
        assert moved[1] * jumps == moved[0] * (jumps + 1)  # loaded to the device in Predict, it left once more


def test_fp32_weights_with_state_on_the_host_train_as_ever() -> None:
    run = micro_run(hybrid=CYCLES, steps=24, evaluations=2)
    plain, streamed = (train(replace(run, train=replace(run.train, optimizer_device=at))) for at in ("model", "host"))
    assert [point.loss for point in streamed.curve] == [point.loss for point in plain.curve]
    assert streamed.heldout["test"].loss == plain.heldout["test"].loss


class LowMemory(Training):
    """The ranks' scenario with the optimizer a job would build."""

    def __init__(self, job: Job, config: TrainConfig) -> None:
        self.narrow = config.weights == "bf16"
        torch.set_default_dtype(torch.bfloat16 if self.narrow else torch.float32)
        try:
            super().__init__(job)
        finally:
            torch.set_default_dtype(torch.float32)
        self.optimizer = build_optimizer(self.model, config, seed=3)
        self.trainer = HybridTrainer(self.model, self.optimizer, job.config, clip_norm=1.0)

    def closure(self) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.narrow):
            return super().closure()


def rank_story(
    parallel: str, changes: dict[str, Any], restore_at: int | None
) -> tuple[list[float | None], list[float]]:
    """Losses and the final weights of a rank, whose global random state is its own. Nothing is compiled: seconds."""
    torch.compiler.set_stance("force_eager")
    job, config = Job(parallel=parallel), TrainConfig(learning_rate=1e-2, **changes)
    training, losses = LowMemory(job, config), []
    torch.manual_seed(training.rank)
    for step in range(20):
        if step == restore_at:
            saved, weights = training.trainer.state_dict(), list(training.model.parameters())
            again = LowMemory(job, config)
            with torch.no_grad():
                for mine, theirs in zip(again.model.parameters(), weights, strict=True):
                    mine.copy_(theirs)
            again.trainer.load_state_dict(saved)
            again.micro_batches, again.steps, training = training.micro_batches, training.steps, again
        losses.append(training.step().loss)
    return losses, training.weights()


RANKS: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {"weights": "bf16"}),
    ("fsdp2", {"weights": "bf16"}),
    ("fsdp2", {"optimizer_device": "host"}),
    ("ddp", {"weights": "bf16", "optimizer": "adamwspam", "optimizer_device": "host"}),
    ("fsdp2", {"weights": "bf16", "optimizer": "adamwspam", "optimizer_device": "host"}),
    ("fsdp2", {"weights": "bf16", "optimizer": "adamw8bit"}),
]


@pytest.mark.parametrize("parallel, changes", RANKS)
def test_ranks_stay_together_and_go_on_bit_for_bit(ranks: RankPool, parallel: str, changes: dict[str, Any]) -> None:
    """Weights are rounded by chance, and each rank's global random state is its own."""
    if "adamw8bit" in changes.values():
        pytest.importorskip("torchao")
    first, second = ranks.run(rank_story, parallel, changes, None)
    assert first == second
    assert ranks.run(rank_story, parallel, changes, 10)[0] == first


def bf16_trainer(config: HybridConfig, learning_rate: float = 3e-3) -> tuple[HybridTrainer, Batches]:
    model = toy_model(width=64).to(torch.bfloat16)
    settings = TrainConfig(learning_rate=learning_rate, weights="bf16")
    batches = Batches(model)
    batches.x, batches.y = batches.x.bfloat16(), batches.y.bfloat16()
    return HybridTrainer(model, build_optimizer(model, settings), config), batches


def test_displacements_of_bf16_weights_are_measured_and_predicted() -> None:
    settings = quick(warmup_steps=20, time_constant=50.0, sample_one_in=1)
    narrow, batches = bf16_trainer(settings)
    model = toy_model(width=64)
    exact = HybridTrainer(model, build_optimizer(model, TrainConfig(learning_rate=3e-3)), settings)
    others = Batches(model)
    for _ in range(200):
        narrow.step(batches)
        exact.step(others)
    mine, theirs = narrow.statistics(), exact.statistics()
    assert mine["jumps"] == theirs["jumps"] > 5
    assert 0.0 < mine["mean_cosine"] < theirs["mean_cosine"] + 0.05  # the rounding is noise, and no direction
    assert mine["mean_alpha"] == pytest.approx(theirs["mean_alpha"], abs=0.25)
    assert {parameter.dtype for parameter in narrow.model.parameters()} == {torch.bfloat16}


def test_a_predicted_step_too_small_for_bf16_moves_the_weights_on_the_average() -> None:
    trainer, batches = bf16_trainer(quick(gain=1.0), learning_rate=1e-5)
    for _ in range(15):
        trainer.step(batches)
    before, cycle = flat(trainer.model).double(), trainer._cycle
    direction = torch.cat([tensor.flatten() for tensor in cycle.predictor.direction.tensors]).double()
    assert (direction.abs() < before.abs() / 512).double().mean() > 0.9  # to the nearest, nearly all would be lost
    moved = torch.zeros_like(before)
    for _ in range(400):
        cycle.predictor.applied = 0
        cycle.predictor.step()
        moved += flat(trainer.model).double() - before
        for parameter, start in zip(
            trainer.model.parameters(), before.split([p.numel() for p in trainer.model.parameters()]), strict=True
        ):
            parameter.data.copy_(start.view_as(parameter))
    along = (moved / 400 @ direction) / (direction @ direction) * cycle.predictor.horizon
    assert along.item() == pytest.approx(1.0, abs=0.2)


def test_a_prediction_is_taken_back_to_within_its_roundings() -> None:
    trainer, batches = bf16_trainer(quick())
    for _ in range(15):
        trainer.step(batches)
    before = flat(trainer.model).float()
    for _ in range(3):
        assert trainer.step(batches).predicted
    away = flat(trainer.model).float()
    trainer._cycle.withdraw(keep=True, loss=1.0)
    back = flat(trainer.model).float()
    assert ((back - before).abs() <= 4 * torch.maximum(before.abs(), away.abs()) / 128 + 1e-6).all()
    assert (back - before).norm() < 0.5 * (away - before).norm()


@pytest.mark.parametrize(
    "sections, part",
    [
        ({"train": {"weights": "bf16"}}, "set train.precision: bf16"),
        ({"train": {"optimizer": "adamw8bit", "optimizer_device": "host"}}, "use optimizer_device: model"),
        (
            {"train": {"optimizer": "adamw8bit"}, "hybrid": {"predictor": "momentum"}},
            "whose 8-bit momentum it can't read",
        ),
        (
            {"train": {"optimizer": "adamwprune", "parallel": "fsdp"}, "resources": {"workers": 2}},
            "use parallel: ddp",
        ),
        (
            {"train": {"optimizer_device": "host"}, "hybrid": {"offload_optimizer": True}},
            "the state is already in host memory",
        ),
    ],
)
def test_what_does_not_go_together_is_said(sections: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict(sections)
    (problem,) = caught.value.problems
    assert part in problem
