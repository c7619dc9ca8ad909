"""A step taken in windows is the plain step: the same bits in fp32; in bf16 training that follows fp32's."""

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from hybrid_ray.config import ModelConfig, TrainConfig
from hybrid_ray.method.predictors.buffers import Buffers
from hybrid_ray.method.weights import Weights
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule
from hybrid_ray.optim.offload import state_tensors
from hybrid_ray.optim.streamed import StreamedAdamW

NAMES = ["adamw", "adam", "sgd", "adamwspam", "adamwprune"]
STEPS = 12


def micro(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32).to(dtype)


def settings(name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(steps=STEPS, optimizer=name, learning_rate=1e-2, prune_start_fraction=0.0, **changes)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, *, since: int = 0) -> float:
    draw = torch.Generator().manual_seed(since)
    for _ in range(steps):
        tokens = torch.randint(257, (4, 17), generator=draw)
        tokens[:, 1::2] = tokens[:, :-1:2]  # every second token repeats the one before
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def windows_of(optimizer: Any, numbers: int) -> Any:
    """Windows far smaller than the larger parameters, which are then stepped in pieces."""
    optimizer._window = numbers
    return optimizer


@pytest.mark.parametrize("window", [1024, 1 << 22])
@pytest.mark.parametrize("name", NAMES)
def test_state_on_the_host_gives_the_same_bits(name: str, window: int) -> None:
    plain, streamed = micro(), micro()
    config = settings(name, optimizer_device="host")
    mine = windows_of(build_optimizer(streamed, config), window)
    theirs = build_optimizer(plain, settings(name))
    for optimizer, model in ((mine, streamed), (theirs, plain)):
        schedule = build_schedule(optimizer, config)
        for step in range(STEPS):
            train(model, optimizer, 1, since=step)
            schedule.step()
    assert torch.equal(flat(streamed), flat(plain))
    for parameter, twin in zip(streamed.parameters(), plain.parameters(), strict=True):
        assert mine.state[parameter].keys() == theirs.state[twin].keys()
        for key, value in theirs.state[twin].items():
            if value is not None:  # SGD of torch before 2.12 may keep none
                assert torch.equal(mine.state[parameter][key], value), key
    assert [len(group["params"]) for group in mine.param_groups] == [len(g["params"]) for g in theirs.param_groups]


@pytest.mark.parametrize("weights, device", [("fp32", "host"), ("bf16", "model"), ("bf16", "host")])
@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_bit_for_bit(name: str, weights: Any, device: Any) -> None:
    config = settings(name, weights=weights, optimizer_device=device)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    whole, first, second = micro(dtype), micro(dtype), micro(dtype)
    optimizer = windows_of(build_optimizer(whole, config), 1024)
    train(whole, optimizer, 7)
    train(whole, optimizer, 5, since=1)
    before = windows_of(build_optimizer(first, config), 1024)
    train(first, before, 7)
    state = through_a_file(before.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    after = windows_of(build_optimizer(second, config), 1024)
    after.load_state_dict(state)
    train(second, after, 5, since=1)
    assert torch.equal(flat(second), flat(whole))
    assert {t.dtype for t in state_tensors(after) if t.dim()} <= {torch.float32, torch.bool}


def test_on_a_cpu_nothing_asks_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("CUDA was asked for")

    model = micro()
    optimizer = build_optimizer(model, settings("adamw", optimizer_device="host"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "stream", asked)
    monkeypatch.setattr(torch.cuda, "_lazy_init", asked)
    train(model, optimizer, 2)
    Buffers(Weights(optimizer), device="host").zero_()


class Stream:
    """In a CUDA stream's place: tells what would wait for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.device, self.name, self.log = torch.device("cpu"), name, log

    def record_event(self) -> str:
        self.log.append(f"fetch {sum(entry.startswith('fetch') for entry in self.log)}")
        return self.log[-1]

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} wait for {event}")

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} wait for {other.name}")

    def synchronize(self) -> None:
        self.log.append("end")


def test_a_window_is_stepped_while_the_next_one_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.ones(30))
    optimizer = windows_of(StreamedAdamW([parameter]), 10)
    optimizer.stream(state_device="host")
    parameter.grad = torch.ones(30)
    optimizer.step()
    log: list[str] = []
    optimizer._copies = Stream("copies", log)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("steps", log))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    optimizer.step()
    assert log == [
        *("fetch 0", "fetch 1", "steps wait for fetch 0", "copies wait for steps"),
        *("fetch 2", "steps wait for fetch 1", "copies wait for steps"),
        *("steps wait for fetch 2", "copies wait for steps", "end"),
    ]


def test_another_seed_rounds_otherwise_and_the_same_seed_alike() -> None:
    ends = []
    for seed in (0, 0, 1):
        model = micro(torch.bfloat16)
        torch.manual_seed(len(ends))
        train(model, build_optimizer(model, settings("adamw", weights="bf16"), seed=seed))
        ends.append(flat(model))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name", NAMES)
def test_bf16_weights_train(name: str) -> None:
    model = micro(torch.bfloat16)
    optimizer = build_optimizer(model, settings(name, weights="bf16"))
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 60) < first
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def final_loss(seed: int, weights: Any, *, by_chance: bool = True) -> float:
    """Of the last steps of a run at a small rate, on text that can be learnt."""
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if weights == "bf16" else torch.float32
    model = build_model(ModelConfig(preset="micro"), vocab_size=257, sequence_length=32).to(dtype)
    config = TrainConfig(steps=120, learning_rate=3e-4, weights=weights)
    if by_chance:
        optimizer = build_optimizer(model, config, seed=seed)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=config.betas, weight_decay=0.1)
    train(model, optimizer, 108, since=seed)
    return sum(train(model, optimizer, 1, since=1000 + step) for step in range(12)) / 12


def test_bf16_weights_rounded_by_chance_follow_fp32_and_rounded_to_the_nearest_do_not() -> None:
    seeds = range(2)
    exact = [final_loss(seed, "fp32") for seed in seeds]
    chance = [final_loss(seed, "bf16") for seed in seeds]
    nearest = [final_loss(seed, "bf16", by_chance=False) for seed in seeds]
    assert sum(chance) / sum(exact) == pytest.approx(1.0, abs=0.01)
    assert all(mine < other for mine, other in zip(chance, nearest, strict=True))
