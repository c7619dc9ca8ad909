"""AdEMAMix against a slow twin, and at the limits where it is AdamW."""

import math
from copy import deepcopy

import pytest
import torch

from hybrid_ray.config import TrainConfig
from hybrid_ray.optim import build_optimizer
from hybrid_ray.optim.ademamix import AdEMAMix, slow_decay

STEPS = 12


def gradients(size: int = 5) -> list[list[float]]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(STEPS, size, generator=generator).tolist()


def stepped(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, rows: list[list[float]]) -> list[float]:
    for row in rows:
        parameter.grad = torch.tensor(row, dtype=parameter.dtype)
        optimizer.step()
    return parameter.detach().tolist()


def ademamix_twin(
    weights: list[float], rows: list[list[float]], *, lr: float, decay: float, alpha: float, beta3: float, total: int
) -> list[float]:
    """arXiv 2409.03137, algorithm 1, with its schedulers over the whole run; betas 0.9 and 0.95."""
    fast, slow, square = ([0.0] * len(weights) for _ in range(3))
    for t, row in enumerate(rows, start=1):
        s = min(1.0, t / total)
        a, b = math.log(0.9), math.log(beta3)
        beta3_now = min(beta3, math.exp(a * b / ((1 - s) * b + s * a)))
        for i, g in enumerate(row):
            fast[i] = 0.9 * fast[i] + 0.1 * g
            slow[i] = beta3_now * slow[i] + (1 - beta3_now) * g
            square[i] = 0.95 * square[i] + 0.05 * g * g
            root = math.sqrt(square[i] / (1 - 0.95**t)) + 1e-8
            step = (fast[i] / (1 - 0.9**t) + alpha * s * slow[i]) / root
            weights[i] -= lr * (step + decay * weights[i])
    return weights


@pytest.mark.parametrize("total", [STEPS, 5])
@pytest.mark.parametrize("fused", [False, True])
def test_equals_its_twin(total: int, fused: bool) -> None:
    rows, start = gradients(), [0.5, -0.2, 0.1, 0.0, 1.0]
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = AdEMAMix(
        [parameter], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, alpha=8.0, beta3=0.99, total_steps=total, fused=fused
    )
    twin = ademamix_twin(start, rows, lr=1e-2, decay=0.1, alpha=8.0, beta3=0.99, total=total)
    assert stepped(optimizer, parameter, rows) == pytest.approx(twin, rel=1e-5)


def test_without_its_slow_average_it_is_adamw() -> None:
    ends = []
    for kind, options in ((torch.optim.AdamW, {}), (AdEMAMix, {"alpha": 0.0, "total_steps": STEPS})):
        parameter = torch.nn.Parameter(torch.ones(5))
        optimizer = kind([parameter], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, **options)
        ends.append(stepped(optimizer, parameter, gradients()))
    assert ends[0] == ends[1]


def test_half_life_grows_linearly_from_the_fast_decay_to_the_slow_one() -> None:
    def half_life(progress: float) -> float:
        return math.log(0.5) / math.log(slow_decay(progress, 0.9984))

    assert slow_decay(0.0, 0.9984) == pytest.approx(0.9)
    assert slow_decay(1.0, 0.9984) == pytest.approx(0.9984)
    assert half_life(0.5) == pytest.approx((half_life(0.0) + half_life(1.0)) / 2)


def test_a_saved_state_goes_on_with_the_same_bits() -> None:
    rows = gradients()

    def fresh(weights: torch.Tensor) -> tuple[torch.nn.Parameter, AdEMAMix]:
        parameter = torch.nn.Parameter(weights)
        return parameter, AdEMAMix([parameter], lr=1e-2, beta3=0.99, total_steps=STEPS)

    parameter, optimizer = fresh(torch.ones(5))
    stepped(optimizer, parameter, rows[:5])
    kept, state = parameter.detach().clone(), deepcopy(optimizer.state_dict())
    again, restored = fresh(kept)
    restored.load_state_dict(state)
    assert stepped(restored, again, rows[5:]) == stepped(optimizer, parameter, rows[5:])


@pytest.mark.parametrize("piece", [4, 1 << 22])
def test_windows_change_no_bit(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stepped in windows of fp32 weights (state on the host), and with pieces smaller than a tensor."""
    monkeypatch.setattr("hybrid_ray.optim.ademamix.PIECE", piece)
    ends = []
    for device in ("model", "host"):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 3)
        optimizer = build_optimizer(
            model, TrainConfig(optimizer="ademamix", steps=20, learning_rate=1e-2, optimizer_device=device)
        )
        for _ in range(4):
            model.zero_grad()
            model(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)
