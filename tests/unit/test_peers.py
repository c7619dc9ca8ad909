"""Optimizers that stand beside AdamW: Muon for hidden matrices, schedule-free."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from hybrid_toy import Batches, flat, quick, toy_model

from hybrid_ray.config import HybridConfig, ModelConfig, TrainConfig
from hybrid_ray.errors import UnsupportedOptimizer
from hybrid_ray.method import HybridTrainer
from hybrid_ray.method.predictors import build_predictor
from hybrid_ray.method.weights import Weights
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer
from hybrid_ray.optim.ademamix import slow_decay
from hybrid_ray.optim.muon import orthogonal_step
from hybrid_ray.optim.schedule_free import evaluation_weights


def built(name: str, **changes: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32)
    return model, build_optimizer(model, TrainConfig(optimizer=name, learning_rate=1e-2, **changes))


def random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_steps_hidden_matrices_alone_and_adamw_the_rest() -> None:
    """torch's own iterates in bf16, ours in fp32 on a CPU: so an update differs by up to one part in 30."""
    model, optimizer = built("muon")
    twin = deepcopy(model)
    hidden = [p for name, p in twin.named_parameters() if p.ndim == 2 and name.startswith("h.")]
    tables = [p for name, p in twin.named_parameters() if p.ndim == 2 and not name.startswith("h.")]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
    parts = [
        torch.optim.Muon(hidden, momentum=0.95, adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW(
            [{"params": tables}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True, **options
        ),
    ]
    before = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    for seed in range(3):
        random_gradients(model, seed)
        random_gradients(twin, seed)
        optimizer.step()
        for part in parts:
            part.step()
    for (name, ours), torchs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if any(torchs is matrix for matrix in hidden):
            difference = (ours - torchs).detach().norm() / (torchs - before[name]).detach().norm()
            assert difference.item() < 0.03, name
        else:
            assert torch.equal(ours, torchs), name


def test_muon_with_the_slow_average_makes_the_mixture_orthogonal_and_is_ademamix_elsewhere() -> None:
    """Word by word: q has AdEMAMix's schedules, a matrix moves along m + alpha q, the others as in AdEMAMix."""
    model, optimizer = built("muon_ademamix", steps=10, weight_decay=0.0)
    twin = deepcopy(model)
    reference = build_optimizer(
        twin, TrainConfig(optimizer="ademamix", alpha=2.0, learning_rate=1e-2, steps=10, weight_decay=0.0)
    )
    hidden = {name for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("h.")}
    name = min(hidden)
    expected = dict(model.named_parameters())[name].detach().clone()
    fast, slow = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(1, 4):
        random_gradients(model, step)
        random_gradients(twin, step)
        gradient = dict(model.named_parameters())[name].grad
        fast = 0.95 * fast + 0.05 * gradient
        decay = slow_decay(step / 10, 0.996)
        slow = decay * slow + (1 - decay) * gradient
        expected -= 1e-2 * orthogonal_step(0.05 * gradient + 0.95 * fast + 2.0 * step / 10 * slow)
        optimizer.step()
        reference.step()
    assert dict(model.named_parameters())[name].detach() == pytest.approx(expected, abs=2e-5)
    for (other, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert other in hidden or torch.equal(ours, theirs), other


@pytest.mark.parametrize("name", ["muon", "muon_ademamix"])
def test_muon_goes_on_from_a_saved_state(name: str) -> None:
    model, optimizer = built(name)
    random_gradients(model, 0)
    optimizer.step()
    again, restored = built(name)
    again.load_state_dict(model.state_dict())
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (again, restored)):
        random_gradients(pair[0], 1)
        pair[1].step()
    assert torch.equal(flat(model), flat(again))


def test_slow_momentum_on_muon_moves_along_orthogonal_matrices() -> None:
    """With one gradient given over and over, q / b has the same direction, and D is Muon's own step but for length."""
    model, optimizer = built("muon", weight_decay=0.0)
    config = HybridConfig(predictor={"name": "slow_momentum", "beta3": 0.95}, full_steps=5, correct_steps=0)
    predictor = build_predictor(Weights(optimizer), optimizer, config, total_steps=100)
    assert predictor is not None
    for done in range(1, 6):
        random_gradients(model, 0)
        predictor.observe([p.grad for p in predictor.weights.parameters], rates=[1e-2] * 3, progress=done / 100)
        before = [p.detach().clone() for p in predictor.weights.parameters]
        optimizer.step()
    predictor.plan(5, [1.0] * 3, None)
    matrix = predictor.weights.group_of.index(0)
    moved = predictor.weights.parameters[matrix].detach() - before[matrix]
    direction = predictor.direction.tensors[matrix]
    assert float(torch.cosine_similarity(moved.flatten(), direction.flatten(), dim=0)) > 0.99
    ratio = (
        predictor.average.tensors[matrix].norm()
        / optimizer.state[predictor.weights.parameters[matrix]]["momentum_buffer"].norm()
    )
    expected = 8.0 * 0.05 * 5 * float(ratio)
    assert float(direction.norm() / moved.norm()) == pytest.approx(expected, rel=0.05)


def test_schedule_free_is_evaluated_at_its_average_and_trained_where_it_was() -> None:
    model, optimizer = built("schedule_free")
    for seed in range(3):
        random_gradients(model, seed)
        optimizer.step()
    trained = flat(model)
    with evaluation_weights(optimizer):
        assert not torch.allclose(flat(model), trained)
    torch.testing.assert_close(flat(model), trained)


def test_schedule_free_trains_with_prediction_off_and_is_refused_with_it() -> None:
    from schedulefree import AdamWScheduleFree

    model = toy_model()
    optimizer = AdamWScheduleFree(model.parameters(), lr=1e-2)
    optimizer.train()
    trainer, batches = HybridTrainer(model, optimizer, HybridConfig(predictor="none")), Batches(model)
    first = trainer.step(batches).loss
    for _ in range(100):
        last = trainer.step(batches).loss
    assert last < 0.5 * first
    with pytest.raises(UnsupportedOptimizer, match="AdamWScheduleFree computes the weights"):
        HybridTrainer(model, optimizer, quick())
