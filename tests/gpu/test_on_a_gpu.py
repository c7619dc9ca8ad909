"""What only a GPU can show, on a GPT-2 of 124M parameters. Figures: ``benchmarks/gpu.py``."""

from dataclasses import replace

import pytest
import torch

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.memory.estimate import memory_need
from hybrid_ray.run_result import RunResult
from hybrid_ray.tasks import load_task
from hybrid_ray.training.loop import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

RUN = RunConfig(
    model=ModelConfig(preset="124M"),
    data=DataConfig(corpus="random", tokenizer="bpe", vocab_size=32_768, heldout_tokens=16_384),
    train=TrainConfig(
        steps=40,
        batch_size=8,
        micro_batch_size=4,
        sequence_length=1024,
        precision="bf16",
        device="cuda",
        evaluations=1,
        calibration_steps=5,
        sample_tokens=0,
    ),
    hybrid=HybridConfig(
        confidence_threshold=0.0, warmup_steps=10, full_steps=5, correct_steps=0, first_fraction=0.0, off_fraction=0.0
    ),
)


def peak(result: RunResult) -> int:
    """Most bytes that the allocator gave out in any phase."""
    return max(int(phase["allocated"]) for phase in result.statistics["memory"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_plan_foretells_the_allocators_peak(precision: str) -> None:
    run = replace(RUN, train=replace(RUN.train, precision=precision))
    assert memory_need(run, load_task(run)).allocated == pytest.approx(peak(train(run)), rel=0.1)


def test_memory_is_flat_while_the_weights_are_predicted() -> None:
    result = train(replace(RUN, train=replace(RUN.train, steps=200)))
    assert result.predicted_steps > 40
    assert abs(result.statistics["memory_bytes_a_step"]) * result.steps < 0.01 * peak(result)


def test_a_compiled_run_says_that_it_took_and_is_faster() -> None:
    found = train(replace(RUN, train=replace(RUN.train, compile=True))).machine
    assert found["compiled"]
    assert found["compiled_step_seconds"] < found["eager_step_seconds"]


def test_optimizer_state_on_the_host_trains_the_same_weights_in_less_memory() -> None:
    away = replace(RUN, train=replace(RUN.train, optimizer_device="host"))
    here, there = train(RUN), train(away)
    assert there.heldout["val"].loss == pytest.approx(here.heldout["val"].loss, rel=1e-3)
    assert peak(there) < peak(here)
