"""AdamWSPAM and AdamWPrune: AdamW where nothing happens, and what they promise where something does."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hybrid_ray.config import ModelConfig, PruneScore, TrainConfig
from hybrid_ray.models import build_model
from hybrid_ray.optim import AdamWPrune, AdamWSPAM, build_optimizer
from hybrid_ray.optim.prune import sparsity_at

SIZE = 40


def weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full((SIZE,), value))


def gradients(steps: int, *, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(SIZE, generator=draw) for _ in range(steps)]


def train(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, given: list[Tensor]) -> None:
    for gradient in given:
        parameter.grad = gradient.clone()
        optimizer.step()


def test_spam_is_adamw_while_gradients_are_steady() -> None:
    mine, theirs = weight(), weight()
    steady = [gradient.sign() for gradient in gradients(50)]  # every norm alike, every entry of its usual size
    train(AdamWSPAM([mine], lr=0.01), mine, steady)
    train(torch.optim.AdamW([theirs], lr=0.01), theirs, steady)
    assert torch.allclose(mine, theirs, atol=1e-7)


def test_spam_clips_an_entry_that_spikes_and_no_other() -> None:
    parameter = weight()
    optimizer = AdamWSPAM([parameter], lr=0.01)
    train(optimizer, parameter, [torch.ones(SIZE)] * 20)
    spike = torch.ones(SIZE)
    spike[3] = -1000.0
    parameter.grad = spike.clone()
    optimizer.step()
    assert parameter.grad[3].item() == pytest.approx(-(50**0.5), rel=1e-4)  # v is 1
    assert torch.equal(parameter.grad[4:], spike[4:])


def test_spam_softens_its_moments_when_the_norm_spikes() -> None:
    parameter = weight()
    optimizer = AdamWSPAM([parameter], lr=0.0, theta=1e12)
    usual = [torch.full((SIZE,), 1.0 + 0.01 * (step % 2)) for step in range(20)]
    train(optimizer, parameter, usual)
    before = optimizer.state[parameter]["exp_avg"].clone()
    train(optimizer, parameter, [torch.full((SIZE,), 5.0)])
    after = optimizer.state[parameter]["exp_avg"]
    assert torch.allclose(after, 0.9 * 0.5 * before + 0.1 * 5.0)
    assert len(optimizer.param_groups[0]["gradient_norms"]) == 21


def test_spam_starts_afresh_and_warms_up_without_touching_the_schedule() -> None:
    parameter = weight()
    optimizer = AdamWSPAM([parameter], lr=0.01, weight_decay=0.0, reset_every=10, warmup_steps=4)
    moves = []
    for _ in range(20):
        before = parameter.detach().clone()
        train(optimizer, parameter, [torch.ones(SIZE)])
        moves.append((before - parameter.detach())[0].item() / 0.01)
        assert optimizer.param_groups[0]["lr"] == 0.01
    climb = [0.5 - 0.5 * math.cos(math.pi * step / 5) for step in range(1, 5)]
    assert moves == pytest.approx([1.0] * 10 + climb + [1.0] * 6, rel=1e-3)
    assert optimizer.state[parameter]["step"] == 10


@pytest.mark.parametrize("kind", ["spam", "prune"])
def test_state_goes_on_where_it_was(kind: str) -> None:
    def make(parameter: nn.Parameter) -> AdamWSPAM | AdamWPrune:
        if kind == "spam":
            return AdamWSPAM([parameter], lr=0.01, reset_every=15, warmup_steps=5)
        groups = [{"params": [parameter], "prune": True}]
        return AdamWPrune(groups, lr=0.01, start=2, end=20, prune_every=5)

    start = torch.randn(SIZE, generator=torch.Generator().manual_seed(9))
    whole, first = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    stream = gradients(30)
    train(make(whole), whole, stream)
    before = make(first)
    train(before, first, stream[:18])
    second = nn.Parameter(first.detach().clone())
    after = make(second)
    after.load_state_dict(before.state_dict())
    if kind == "prune":
        assert after.state[second]["mask"].dtype == torch.bool
    train(after, second, stream[18:])
    assert torch.equal(second, whole)


@given(target=st.floats(0.0, 0.99), start=st.integers(0, 50), length=st.integers(1, 100))
def test_sparsity_ramps_up_between_start_and_end(target: float, start: int, length: int) -> None:
    ramp = [sparsity_at(step, target=target, start=start, end=start + length) for step in range(start + length + 5)]
    assert ramp == sorted(ramp)
    assert set(ramp[: start + 1]) == {0.0}
    assert ramp[start + length :] == [target] * 5
    assert sparsity_at(start + length // 2, target=target, start=start, end=start + length) <= target / 8 + 1e-12


@pytest.mark.parametrize("score", ["bitter0", "bitter1", "bitter7"])
def test_pruned_weights_stay_zero_and_the_least_important_go(score: PruneScore) -> None:
    parameter = nn.Parameter(torch.linspace(0.5, 2.0, SIZE))
    sizes = torch.linspace(2.0, 0.5, SIZE) if score != "bitter1" else torch.ones(SIZE)
    stream = [gradient.sign() * sizes for gradient in gradients(60)]
    groups = [{"params": [parameter], "prune": True}]
    optimizer = AdamWPrune(groups, lr=1e-5, score=score, start=5, end=40, prune_every=10, target_sparsity=0.5)
    train(optimizer, parameter, stream[:39])
    assert 0.0 < optimizer.sparsity() < 0.5
    magnitude = parameter.detach().abs().clone()
    train(optimizer, parameter, stream[39:40])
    assert optimizer.sparsity() == 0.5
    momentum, second = optimizer.state[parameter]["exp_avg"].abs(), optimizer.state[parameter]["exp_avg_sq"]
    importance = {
        "bitter0": magnitude * momentum * magnitude / second.sqrt(),
        "bitter1": magnitude,
        "bitter7": magnitude * second**0.25,
    }[score]
    gone = (parameter == 0).nonzero().flatten()
    assert set(gone.tolist()) == set(importance.argsort()[: SIZE // 2].tolist())
    with torch.no_grad():
        parameter.add_(0.1)  # a predicted step moves everything
    before = optimizer.state[parameter]["exp_avg"][gone].clone()
    train(optimizer, parameter, stream[40:])
    assert torch.allclose(optimizer.state[parameter]["exp_avg"][gone], before * 0.9**20)  # their gradients don't count
    assert torch.equal((parameter == 0).nonzero().flatten(), gone)


def test_prune_takes_the_layers_of_a_gpt_and_leaves_the_tables() -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32)
    config = TrainConfig(steps=20, optimizer="adamwprune", prune_sparsity=0.6, learning_rate=1e-3)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, AdamWPrune)
    tokens = torch.randint(257, (4, 33))
    for _ in range(20):
        optimizer.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    assert optimizer.sparsity() == pytest.approx(0.6, abs=1e-3)
    assert (model.wte.weight != 0).all()
    assert (model.get_parameter("h.0.ln_1.weight") != 0).all()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adamwspam", "adamwprune"])
def test_they_train(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32)
    optimizer = build_optimizer(model, TrainConfig(steps=60, optimizer=name, learning_rate=1e-2))  # type: ignore[arg-type]
    tokens = torch.randint(257, (4, 33))
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
