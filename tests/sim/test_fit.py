"""The memory a run is said to need, against the optimizers, predictors and models themselves."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from hybrid_ray.config import HybridConfig, JobConfig, ModelConfig, OptimizerName, PredictorName, TrainConfig
from hybrid_ray.hybrid.predictors import build_predictor
from hybrid_ray.hybrid.weights import Weights
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer
from hybrid_ray.tune.fit import MemoryNeed, memory_need, predictor_bytes

VOCAB = 257


def need(**sections: Any) -> MemoryNeed:
    return memory_need(replace(JobConfig(model=ModelConfig(preset="micro")), **sections), VOCAB)


def model() -> torch.nn.Module:
    return build_model(ModelConfig(preset="micro"), vocab_size=VOCAB, sequence_length=16)


def test_memory_of_124m_is_16_bytes_a_parameter_and_8_for_the_predictor() -> None:
    need = memory_need(JobConfig(model=ModelConfig(preset="124M")), vocab_size=50_257)
    assert need.weights == 4 * 124_439_808
    assert need.weights + need.gradients + need.optimizer == 16 * 124_439_808
    assert need.predictor == 8 * 124_439_808


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizers_state_is_counted(name: OptimizerName) -> None:
    trained, config = model(), TrainConfig(optimizer=name, prune_start_fraction=0.0, prune_end_fraction=0.1)
    optimizer = build_optimizer(trained, config)
    for _ in range(60):  # adamwprune makes its masks at step 50
        for parameter in trained.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    kept = sum(value.numel() * value.element_size() for value in state if value.ndim)
    assert kept <= need(train=config).optimizer <= 2 * kept


@pytest.mark.parametrize("name", get_args(PredictorName))
def test_every_predictors_buffers_are_counted(name: PredictorName) -> None:
    config = HybridConfig(predictor=name)
    optimizer = torch.optim.AdamW(model().parameters())
    predictor = build_predictor(Weights(optimizer), optimizer, config)
    assert predictor_bytes(config) == (predictor.bytes_per_parameter if predictor else 0)


def test_buffers_on_the_host_or_in_half_precision_cost_less() -> None:
    whole = need().predictor
    assert need(hybrid=HybridConfig(buffer_dtype="bfloat16")).predictor == whole // 2
    assert need(hybrid=HybridConfig(buffer_device="host")).predictor == 0


def test_workers_hold_the_model_each_or_a_part_of_it() -> None:
    def of(workers: int, **train: Any) -> MemoryNeed:
        job = JobConfig(model=ModelConfig(preset="1.5B"), train=TrainConfig(batch_size=8, **train))
        return memory_need(replace(job, resources=replace(job.resources, workers=workers)), VOCAB)

    alone, copies, parts = of(1), of(8), of(8, parallel="fsdp")
    assert of(1, parallel="fsdp") == alone
    assert (copies.weights, copies.optimizer) == (alone.weights, alone.optimizer)
    assert copies.gradients == 2 * alone.gradients  # DDP's buckets
    assert parts.optimizer == pytest.approx(alone.optimizer / 8, rel=1e-6)
    assert parts.predictor == pytest.approx(alone.predictor / 8, rel=1e-6)
    assert alone.weights / 8 < parts.weights < alone.weights / 5  # and two whole blocks of 48, and the tables
