"""AdamW with a byte a moment: its size, its loss beside AdamW's, and a checkpoint of plain tensors."""

import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchao")
from micro_runs import CYCLES, micro_run
from test_low_memory import StopsAt
from test_streamed import flat, micro, train

from hybrid_ray.config import ModelConfig, TrainConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule, eight_bit
from hybrid_ray.optim.offload import StateOffload, state_tensors
from hybrid_ray.training.loop import train as run_training


@pytest.fixture(autouse=True)
def eager(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same arithmetic without the compiler, which takes seconds a shape of parameter."""
    if "compiled" in request.node.name:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def build(name: str, weights: Any = "fp32", preset: str = "micro") -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(preset=preset), vocab_size=257, sequence_length=32)
    model.to(torch.bfloat16 if weights == "bf16" else torch.float32)
    config = TrainConfig(optimizer=name, weights=weights, learning_rate=3e-3)  # type: ignore[arg-type]
    return model, build_optimizer(model, config)


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_it_trains_as_adamw_does(weights: str) -> None:
    losses = []
    for name in ("adamw", "adamw8bit"):
        model, optimizer = build(name, weights)
        schedule = build_schedule(optimizer, TrainConfig(steps=30))
        for step in range(30):
            loss = train(model, optimizer, 1, since=step)
            schedule.step()
        losses.append(loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] < 5.25 < train(*build("adamw"), steps=1)


def one_matrix() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(512, 256, bias=False)
    optimizer = build_optimizer(model, TrainConfig(optimizer="adamw8bit"))
    for _ in range(3):
        model(torch.randn(4, 512)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.slow
def test_compiled_it_is_the_same_step() -> None:
    compiled, _ = one_matrix()
    with torch.compiler.set_stance("force_eager"):
        plain, _ = one_matrix()
    assert (compiled.weight - plain.weight).abs().max() < 1e-4 < TrainConfig().learning_rate


def test_its_state_takes_two_bytes_a_parameter_of_a_large_matrix() -> None:
    _, optimizer = one_matrix()
    tables = 2 * 256 * 4  # the values of the codes, whatever the size
    measured = sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(optimizer)) - tables - 4
    assert measured / (512 * 256) == 2 + 2 * 4 / 256


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_bit_for_bit(weights: str) -> None:
    whole, optimizer = build("adamw8bit", weights)
    train(whole, optimizer, 5)
    train(whole, optimizer, 4, since=1)
    first, before = build("adamw8bit", weights)
    train(first, before, 5)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    assert b"torchao" not in file.getvalue()
    state = torch.load(file, weights_only=True)
    second, after = build("adamw8bit", weights)
    second.load_state_dict(first.state_dict())
    after.load_state_dict(state)
    train(second, after, 4, since=1)
    assert torch.equal(flat(second), flat(whole))


def test_its_parts_can_be_on_the_host_through_predict() -> None:
    ends = []
    for away in (False, True):
        model, optimizer = build("adamw8bit")
        offload = StateOffload(optimizer, torch.device("cpu"))
        train(model, optimizer, 3)
        if away:
            offload.leave()
            offload.come_back()
        train(model, optimizer, 2, since=1)
        ends.append(flat(model))
    assert torch.equal(*ends)
    assert offload.moved_bytes > flat(model).numel()


def test_a_hybrid_run_with_bf16_weights_stopped_in_predict_goes_on_to_the_same_loss(tmp_path: Path) -> None:
    run = micro_run(
        hybrid=replace(CYCLES, offload_optimizer=True),
        steps=30,
        evaluations=1,
        optimizer="adamw8bit",
        weights="bf16",
        precision="bf16",
    )
    whole = run_training(run)
    assert whole.replay.phases[16] == "P"
    assert run_training(run, directory=tmp_path, reporter=StopsAt(17)).status == "stopped"
    assert run_training(run, directory=tmp_path).curve[-1].loss == whole.curve[-1].loss


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    eight_bit._kind.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'hybrid-ray\[low_memory\]'"):
        build_optimizer(micro(), TrainConfig(optimizer="adamw8bit"))
    eight_bit._kind.cache_clear()
