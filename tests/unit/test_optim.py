"""Schedules end with the run, and decay falls on matrices only."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ray.config import ModelConfig, TrainConfig
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule, learning_rate_factor

SCHEDULES = ["cosine", "linear", "constant"]


@given(
    steps=st.integers(10, 3000),
    warmup=st.floats(0.0, 0.5),
    floor=st.floats(0.0, 1.0),
    schedule=st.sampled_from(SCHEDULES),
)
def test_rate_rises_to_its_peak_once_then_falls_to_the_floor_in_the_last_step(
    steps: int, warmup: float, floor: float, schedule: str
) -> None:
    config = TrainConfig(steps=steps, lr_warmup_fraction=warmup, min_lr_ratio=floor, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate_factor(done, config) for done in range(steps + 3)]
    rising = round(warmup * steps)
    assert all(earlier < later for earlier, later in pairwise(rates[:rising]))
    if rising:
        assert rates[rising - 1] == 1.0
    falling = rates[max(0, rising - 1) :]
    assert all(earlier >= later - 1e-12 for earlier, later in pairwise(falling))
    end = 1.0 if schedule == "constant" else floor
    assert rates[steps - 1] == pytest.approx(end)
    assert rates[steps:] == pytest.approx([end] * 3)
    assert 0.0 <= min(rates) <= max(rates) <= 1.0


def test_cosine_and_linear_pass_their_middle_half_way() -> None:
    for schedule in ("cosine", "linear"):
        config = TrainConfig(steps=1000, lr_warmup_fraction=0.0, min_lr_ratio=0.2, schedule=schedule)  # type: ignore[arg-type]
        assert learning_rate_factor(499, config) == pytest.approx(0.6)
    cosine = TrainConfig(steps=1000, lr_warmup_fraction=0.0, min_lr_ratio=0.0)
    assert learning_rate_factor(249, cosine) == pytest.approx(0.5 + 0.5 * 2**-0.5)


def test_a_shorter_run_keeps_the_shape_of_its_schedule() -> None:
    long, short = TrainConfig(steps=1000), TrainConfig(steps=500)
    for done in range(99, 500, 100):
        assert learning_rate_factor(done, short) == pytest.approx(learning_rate_factor(2 * done + 1, long))


def test_scheduler_sets_the_rate_of_every_group() -> None:
    config = TrainConfig(steps=20, learning_rate=0.5)
    optimizer = build_optimizer(torch.nn.Linear(3, 2), config)
    scheduler = build_schedule(optimizer, config)
    for done in range(20):
        expected = 0.5 * learning_rate_factor(done, config)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.1))  # type: ignore[arg-type]
    decayed, plain = (group["params"] for group in optimizer.param_groups)
    assert len(decayed) + len(plain) == len(list(model.parameters()))
    assert {parameter.ndim for parameter in decayed} == {2}
    assert {parameter.ndim for parameter in plain} == {1}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[parameter_name])
        assert moved == (parameter.ndim == 2), parameter_name


def test_fused_adamw_is_adamw() -> None:
    def weights(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 4)
        config = TrainConfig(learning_rate=0.01, weight_decay=0.1)
        if fused:
            optimizer = build_optimizer(model, config)
            assert optimizer.defaults["fused"]
        else:
            groups = [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), foreach=False)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
        return torch.cat([model.weight.flatten(), model.bias]).detach()

    assert torch.allclose(weights(True), weights(False), atol=1e-6)
