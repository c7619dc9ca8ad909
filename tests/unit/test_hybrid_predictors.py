"""The fast predictors against their slow twins, on the weights of a real (toy) run."""

import dataclasses
import math

import pytest
import reference_predictors as reference
import torch
from hybrid_toy import flat, quick, toy_model
from reference_predictors import Window

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors import EmaNesterov, build_predictor
from hybrid_ray.method.predictors.linear_fit import slope_weights
from hybrid_ray.method.weights import Weights

LENGTHS = [(5,), (3, 1), (4,), (1, 2, 2), (6,), (2,)]  # real steps of each window, by cycle


def move(model: torch.nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.01)


def direction(predictor) -> torch.Tensor:
    return torch.cat([t.reshape(-1).float() for t in predictor.direction.tensors])


def run_cycles(config, *, jump: bool = True):
    """Run the windows of LENGTHS with random steps, planning after each cycle and jumping. Yields what twins need."""
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters())
    predictor = build_predictor(Weights(optimizer), optimizer, config)
    generator = torch.Generator().manual_seed(1)
    cycles: list[list[Window]] = []
    for lengths in LENGTHS:
        windows = []
        for steps in lengths:
            start = flat(model).double().tolist()
            predictor.open_window()
            for _ in range(steps):
                move(model, generator)
            predictor.close_window(steps)
            windows.append(Window(start=start, end=flat(model).double().tolist(), steps=steps))
            with torch.no_grad():  # the weights move between windows, too: a predicted step
                for p in model.parameters():
                    p.add_(0.003)
        cycles.append(windows)
        predictor.plan(3, [1.0], None)
        yield predictor, cycles
        for _ in range(3 * jump):
            predictor.step()


def test_ema_nesterov_averages_over_a_sixteenth_of_the_runs_real_steps() -> None:
    """5,714 nominal steps of which those between 16 and 76 % are half predicted: 4,000 real ones, a constant of 250."""
    config = HybridConfig(warmup_steps=0, full_steps=5, prediction_horizon=5, correct_steps=0)
    assert (config.predicts_from, config.predicts_until, config.predictor.options["gain"]) == (0.16, 0.76, 2.5)
    assert config.real_steps(5714) == pytest.approx(4000, abs=1)
    weights = Weights(torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))]))
    predictor = build_predictor(weights, torch.optim.SGD(weights.parameters), config, total_steps=5714)
    assert isinstance(predictor, EmaNesterov)
    for steps in (10, 10):
        predictor.open_window()
        predictor.close_window(steps)
    assert predictor.weight_sum == pytest.approx(10 * math.exp(-10 / 250) + 10, rel=1e-4)
    predictor.reset()
    predictor.open_window()  # what the run asked for is no state, and is not forgotten


@pytest.mark.parametrize("time_constant", [2.0, 100.0])
def test_ema_nesterov_equals_its_twin(time_constant: float) -> None:
    config = quick(time_constant=time_constant, gain=0.7)
    for predictor, cycles in run_cycles(config):
        windows = [window for cycle in cycles for window in cycle]
        twin = reference.ema_nesterov(windows, time_constant=time_constant, gain=0.7, horizon=3)
        torch.testing.assert_close(direction(predictor), torch.tensor(twin), rtol=1e-4, atol=2e-7)


def test_snoo_equals_its_twin() -> None:
    config = quick(predictor="snoo", outer_lr=0.6, outer_momentum=0.5)
    for predictor, cycles in run_cycles(config):
        twin = reference.snoo(cycles, outer_lr=0.6, outer_momentum=0.5)
        torch.testing.assert_close(direction(predictor), torch.tensor(twin), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("points", [2, 4])
def test_linear_fit_equals_its_twin(points: int) -> None:
    config = quick(predictor="linear_fit", fit_windows=points, gain=0.9)
    for predictor, cycles in run_cycles(config):
        twin = reference.linear_fit(cycles, points=points, gain=0.9, horizon=3)
        torch.testing.assert_close(direction(predictor), torch.tensor(twin), rtol=1e-4, atol=1e-6)


def test_linear_fit_of_a_straight_path_is_its_slope() -> None:
    weights = slope_weights([3, 1, 4])
    assert sum(w * 0.5 * steps for w, steps in zip(weights, [3, 1, 4], strict=True)) == pytest.approx(0.5)


@pytest.mark.parametrize("kind, options", [("AdamW", {}), ("Adam", {"eps": 1e-2}), ("AdamW", {"amsgrad": True})])
def test_coasting_equals_adams_own_updates_without_a_gradient(kind: str, options: dict) -> None:
    model = toy_model()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2, weight_decay=0.0, **options)
    for _ in range(3):
        (model(torch.randn(4, 8)) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    predictor = build_predictor(Weights(optimizer), optimizer, quick(predictor="momentum"))
    predictor.plan(4, [1.0], None)
    before = flat(model)
    if "amsgrad" not in options:
        state = [optimizer.state[p] for p in model.parameters()]
        twin = reference.adam_coasting(
            torch.cat([s["exp_avg"].reshape(-1) for s in state]).tolist(),
            torch.cat([s["exp_avg_sq"].reshape(-1) for s in state]).tolist(),
            step=3,
            lr=1e-2,
            betas=(0.9, 0.999),
            eps=options.get("eps", 1e-8),
            horizon=4,
        )
        torch.testing.assert_close(direction(predictor), torch.tensor(twin), rtol=1e-4, atol=1e-8)
    for _ in range(4):  # the optimizer itself, with gradients of zero
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    torch.testing.assert_close(direction(predictor), flat(model) - before, rtol=1e-3, atol=3e-7)


@pytest.mark.parametrize("nesterov", [False, True])
def test_coasting_equals_sgds_own_updates_without_a_gradient(nesterov: bool) -> None:
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)
    (model(torch.randn(4, 8)) ** 2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    predictor = build_predictor(Weights(optimizer), optimizer, quick(predictor="momentum"))
    predictor.plan(4, [0.5], None)
    buffer = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(-1) for p in model.parameters()])
    twin = reference.sgd_coasting(buffer.tolist(), lr=0.1, momentum=0.9, nesterov=nesterov, horizon=4)
    torch.testing.assert_close(direction(predictor), 0.5 * torch.tensor(twin), rtol=1e-4, atol=1e-8)


def test_coasting_leaves_the_optimizer_alone_and_starts_at_zero() -> None:
    model = toy_model()
    optimizer = torch.optim.AdamW(model.parameters())
    predictor = build_predictor(Weights(optimizer), optimizer, quick(predictor="momentum"))
    predictor.plan(4, [1.0], None)
    assert direction(predictor).abs().max() == 0.0
    assert not optimizer.state


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.RMSprop(p, lr=0.1)])
def test_coasting_without_momentum_is_refused(optimizer) -> None:
    optimizer = optimizer(toy_model().parameters())
    with pytest.raises(ConfigError, match="momentum needs Adam"):
        build_predictor(Weights(optimizer), optimizer, quick(predictor="momentum"))


@pytest.mark.parametrize("name", ["random", "reversed"])
def test_controls_have_the_recorded_length_in_each_group(name: str) -> None:
    model = toy_model()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    weights = Weights(optimizer)
    predictor = build_predictor(weights, optimizer, quick(predictor=name))
    predictor.open_window()
    move(model, torch.Generator().manual_seed(0))
    predictor.close_window(1)
    predictor.plan(5, [1.0, 1.0], [0.25, 4.0])
    assert predictor.squares().sqrt().tolist() == pytest.approx([0.25, 4.0])


def test_reversed_points_against_the_average() -> None:
    found = {}
    for name in ("ema_nesterov", "reversed"):
        model = toy_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        predictor = build_predictor(Weights(optimizer), optimizer, quick(predictor=name))
        predictor.open_window()
        move(model, torch.Generator().manual_seed(0))
        predictor.close_window(1)
        predictor.plan(5, [1.0], [0.5])
        found[name] = direction(predictor)
    cosine = torch.nn.functional.cosine_similarity(found["ema_nesterov"], found["reversed"], dim=0)
    assert cosine.item() == pytest.approx(-1.0)


def test_random_directions_differ_from_jump_to_jump_and_leave_global_randomness_alone() -> None:
    model = toy_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    predictor = build_predictor(Weights(optimizer), optimizer, quick(predictor="random"))
    state = torch.get_rng_state()
    predictor.plan(5, [1.0], [1.0])
    first = direction(predictor)
    predictor.plan(5, [1.0], [1.0])
    assert abs(torch.dot(first, direction(predictor))) < 0.4
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "name, narrow, expected",
    [
        ("ema_nesterov", False, 8.0),
        ("snoo", False, 12.0),
        ("linear_fit", False, 16.0),
        ("momentum", False, 4.0),
        ("zero", False, 0.0),
        ("random", False, 4.0),
        ("reversed", False, 8.0),
        ("ema_nesterov", True, 4.0),
    ],
)
@pytest.mark.parametrize("device", ["model", "host"])
def test_extra_memory_is_as_documented(name: str, narrow: bool, expected: float, device: str) -> None:
    model = torch.nn.Linear(512, 512, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    config = quick(predictor=name, buffer_dtype="bfloat16" if narrow else "float32", buffer_device=device)
    predictor = build_predictor(Weights(optimizer), optimizer, config)
    here, there = (expected, 0.0) if device == "model" else (0.0, expected)
    assert predictor.bytes_per_parameter == here
    assert predictor.host_bytes_per_parameter == there


@pytest.mark.parametrize("name", ["ema_nesterov", "snoo", "linear_fit"])
@pytest.mark.parametrize("changes", [{"buffer_device": "host"}, {"buffer_dtype": "bfloat16"}])
def test_other_buffers_give_the_same_direction(name: str, changes: dict) -> None:
    config = quick(predictor=name)
    for (plain, _), (other, _) in zip(
        run_cycles(config, jump=False), run_cycles(dataclasses.replace(config, **changes), jump=False), strict=True
    ):
        a, b = direction(plain), direction(other)
        if "buffer_device" in changes:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        else:
            assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98


def test_withdraw_takes_back_what_was_added_and_keeps_real_steps() -> None:
    for predictor, _ in run_cycles(quick()):
        weights = predictor.weights.local()
        before = [w.clone() for w in weights]
        predictor.step()
        predictor.step()
        assert any(not torch.equal(w, b) for w, b in zip(weights, before, strict=True))
        for w in weights:
            w.add_(0.5)  # a real step between
        predictor.withdraw()
        predictor.withdraw()  # nothing left to take back
        for w, b in zip(weights, before, strict=True):
            torch.testing.assert_close(w, b + 0.5, rtol=1e-6, atol=1e-6)


def test_reset_forgets_every_window() -> None:
    for name in ("ema_nesterov", "snoo", "linear_fit"):
        for predictor, _ in run_cycles(quick(predictor=name)):
            predictor.reset()
            predictor.open_window()
            predictor.close_window(0)
            predictor.plan(2, [1.0], None)
            assert direction(predictor).abs().max() < 1e-7
