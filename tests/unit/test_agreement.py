"""What is measured on a sample is what the whole would show; confidence, corrector and horizon do what they say."""

import math
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.gate.agreement import Agreement, AgreementMeter
from hybrid_ray.method.gate.agreement_score import AgreementScore
from hybrid_ray.method.gate.coordinate_sample import CoordinateSample
from hybrid_ray.method.gate.horizon import choose_horizon
from hybrid_ray.method.phase_memory import Slope
from hybrid_ray.method.predictors.buffers import Buffers
from hybrid_ray.method.predictors.corrector import Corrector
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.weights import Weights
from hybrid_ray.optim import local


def weights_of(*shapes: tuple[int, ...]) -> Weights:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    return Weights(torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1))


def measured(**changes: float) -> Agreement:
    values = {"cosine": 0.5, "alpha": 1.0, "alpha_by_group": (1.0,), "ceiling": 0.5, "error": 0.9, "size": 1.0}
    return Agreement(**(values | changes))


def test_products_of_a_sample_estimate_those_of_the_whole() -> None:
    weights = weights_of((400, 300), (300,), (5,))
    sample = CoordinateSample(weights, one_in=16, seed=0)
    assert len(sample) == 400 * 300 // 16 + 64 + 5
    local = weights.local()
    estimates = sample.products(sample.read(local), sample.read(local)).tolist()
    for estimate, tensor, tolerance in zip(estimates, local, (0.05, 0.5, 1e-6), strict=True):
        assert estimate == pytest.approx(tensor.square().sum().item(), rel=tolerance)


def test_a_sample_of_everything_is_exact_and_none_reads_as_zero() -> None:
    weights = weights_of((7, 3), (4,))
    sample = CoordinateSample(weights, one_in=1, seed=0)
    assert torch.equal(sample.read(weights.local()), torch.cat([t.reshape(-1) for t in weights.local()]))
    assert sample.read([None, weights.local()[1]])[:21].abs().max() == 0.0


def test_pairs_multiplied_at_once_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = CoordinateSample(weights_of((40, 30), (30,)), one_in=4, seed=0)
    pairs = [(torch.randn(len(sample)), torch.randn(len(sample))) for _ in range(3)]
    at_once = sample.products_of(pairs)
    monkeypatch.setattr("hybrid_ray.method.gate.coordinate_sample._SMALL", 0)
    assert torch.equal(at_once, sample.products_of(pairs))


def test_a_window_is_compared_with_what_was_foreseen() -> None:
    weights = weights_of((200,))
    sample = AgreementMeter(CoordinateSample(weights, one_in=1, seed=0))
    start = [torch.zeros(200)]
    step = torch.ones(200)
    sample.foresee([4.0 * step], horizon=2)  # 2 a step
    sample.open(start)
    sample.mark_middle([3.0 * step])
    found = sample.close([6.0 * step], steps=6)  # 1 a step
    assert found is not None
    assert found.cosine == pytest.approx(1.0)
    assert found.alpha == pytest.approx(0.5)
    assert found.ceiling == pytest.approx(1.0)
    assert found.error == pytest.approx(1.0)


def test_the_ceiling_is_the_reliability_of_a_noisy_window() -> None:
    """Signal and noise of known sizes: reliability = signal variance / (signal + noise / steps) variance."""
    generator = torch.Generator().manual_seed(3)
    size, steps, noise = 20_000, 8, 2.0
    weights = weights_of((size,))
    sample = AgreementMeter(CoordinateSample(weights, one_in=1, seed=0))
    signal = torch.randn(size, generator=generator)
    sample.foresee([signal], horizon=1)
    now = torch.zeros(size)
    sample.open([now])
    for step in range(steps):
        if step == steps // 2:
            sample.mark_middle([now])
        now = now + signal + noise * torch.randn(size, generator=generator)
    found = sample.close([now], steps=steps)
    reliability = 1.0 / (1.0 + noise**2 / steps)
    assert found is not None
    assert found.ceiling == pytest.approx(reliability, abs=0.03)
    assert found.cosine**2 / found.ceiling == pytest.approx(1.0, abs=0.05)  # a perfect prediction agrees fully


def test_windows_of_one_step_take_their_ceiling_from_the_window_before() -> None:
    weights = weights_of((100,))
    sample = AgreementMeter(CoordinateSample(weights, one_in=1, seed=0))
    sample.foresee([torch.ones(100)], horizon=1)
    ceilings = []
    for number in range(3):
        sample.open([torch.full((100,), float(number))])
        found = sample.close([torch.full((100,), float(number + 1))], steps=1)
        ceilings.append(found.ceiling)
    assert ceilings == [None, pytest.approx(1.0), pytest.approx(1.0)]


def test_nothing_done_or_nothing_foreseen_is_no_measure() -> None:
    weights = weights_of((10,))
    sample = AgreementMeter(CoordinateSample(weights, one_in=1, seed=0))
    sample.open([torch.zeros(10)])
    assert sample.close([torch.ones(10)], steps=1) is None
    sample.foresee([torch.ones(10)], horizon=1)
    sample.open([torch.zeros(10)])
    assert sample.close([torch.zeros(10)], steps=0) is None
    sample.open([torch.zeros(10)])
    assert sample.close([torch.zeros(10)], steps=3) is None  # the weights stood still


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(-9, 9), st.none() | st.floats(-1, 1), st.booleans()),
        max_size=12,
    )
)
def test_the_score_is_always_a_number_from_0_to_1(cycles: list) -> None:
    score = AgreementScore()
    for cosine, alpha, ceiling, overshot in cycles:
        score.observe_window(measured(cosine=cosine, alpha=alpha, ceiling=ceiling))
        score.observe_jump(overshot=overshot)
        assert 0.0 <= score.value <= 1.0


def test_the_score_falls_with_noise_overshoot_and_length() -> None:
    def after(overshot: bool = False, **changes: float) -> float:
        score = AgreementScore()
        score.observe_window(measured(**({"cosine": 0.6} | changes)))
        score.observe_jump(overshot=overshot)
        return score.value

    best = after()
    assert best == pytest.approx(0.6 / 0.5**0.5)
    assert after(cosine=0.3) < best
    assert after(alpha=0.2) == pytest.approx(0.4 * best)
    assert after(overshot=True) == pytest.approx(0.75 * best)
    assert AgreementScore().value == 0.0


def test_residual_feedback_finds_the_length_that_real_steps_have() -> None:
    corrector = Corrector(1, rho=0.3)
    for _ in range(40):
        corrector.observe_window([0.6 / corrector.factors[0]])  # alpha* of a step that should be 0.6 as long
    assert corrector.factors[0] == pytest.approx(0.6, rel=1e-3)
    off = Corrector(1, rho=0.0)
    off.observe_window([0.1])
    assert off.factors == [1.0]


def test_horizons() -> None:
    fixed, scaled = HybridConfig(prediction_horizon=40), HybridConfig(prediction_horizon=40, horizon_mode="scaled")
    assert choose_horizon(fixed, confidence=0.5, lr_ratio=0.5, ratio=1.0) == 40
    assert choose_horizon(fixed, confidence=0.5, lr_ratio=0.5, ratio=0.5) == 20
    assert choose_horizon(scaled, confidence=0.5, lr_ratio=0.5, ratio=1.0) == 5
    assert choose_horizon(scaled, confidence=0.0, lr_ratio=0.5, ratio=1.0) == 1


def test_bf16_rounding_is_unbiased() -> None:
    weights = weights_of((300, 300))
    value = torch.full((300, 300), 1.001)  # between two bf16 numbers, 1 and 1.0078
    buffers = Buffers(weights, dtype="bfloat16")
    buffers.assign_([value], [1.0])
    assert set(buffers.tensors[0].unique().tolist()) == {1.0, 1.0078125}
    assert buffers.tensors[0].float().mean().item() == pytest.approx(1.001, abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_buffers_on_the_host_cross_in_pieces(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PIECE", 7)
    weights, sizes = weights_of((5, 6)), []
    monkeypatch.setattr(torch.Tensor, "to", watched(torch.Tensor.to, sizes))
    buffers = Buffers(weights, dtype=dtype, device="host")
    buffers.accumulate_(0.0, [torch.full((5, 6), 0.5)], 1.0)
    buffers.add_to(target := [torch.ones(5, 6)], 2.0)
    assert torch.equal(target[0], torch.full((5, 6), 2.0))
    assert buffers.squares()[0].item() == pytest.approx(0.25 * 30)
    assert max(sizes) == 7


def watched(call: Any, sizes: list[int]) -> Any:
    """``Tensor.to``, which is how buffers cross to the model's device, with the size of what crosses noted."""

    def noting(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        sizes.append(tensor.numel())
        return call(tensor, *arguments, **options)

    return noting


def test_bf16_keeps_infinity_and_nan_visible() -> None:
    buffers = Buffers(weights_of((2, 2)), dtype="bfloat16")
    buffers.assign_([torch.tensor([[math.inf, 1.0], [math.nan, -math.inf]])], [1.0])
    assert torch.isfinite(buffers.tensors[0]).tolist() == [[False, True], [False, False]]


def test_the_slope_of_memory_is_that_of_a_least_squares_line() -> None:
    slope = Slope()
    assert slope.value is None
    steps, found = [5, 15, 20, 25], [80_000_000_000, 80_000_000_100, 80_000_000_020, 80_000_000_500]
    for step, allocated in zip(steps, found, strict=True):
        slope.add(step, allocated)
    assert slope.value == pytest.approx(statistics.linear_regression(steps, found).slope)


def test_the_clock_adds_up_by_part_also_when_something_is_raised() -> None:
    clock = StepClock(torch.device("cpu"))
    with clock.part("forward"):
        sum(range(1000))
    with pytest.raises(ZeroDivisionError), clock.part("forward"):
        1 / 0  # noqa: B018
    seconds = clock.seconds()
    assert set(seconds) == {"forward"}
    clock.load({"forward": 5.0})
    with clock.part("forward"):
        pass
    assert 5.0 < clock.seconds()["forward"] < 5.1
