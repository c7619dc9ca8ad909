"""bf16 written by chance: right on the average, the same for the same seed, and training goes on where bf16 stands."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ray.optim.local import PIECE, pieces
from hybrid_ray.optim.rounding import Rounding

CPU = torch.device("cpu")


def rounded(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    target = torch.empty_like(values, dtype=torch.bfloat16)
    rounding = Rounding(CPU, seed)
    rounding.begin()
    rounding.write(target, values.clone())
    return target


def test_the_mean_over_many_roundings_is_the_value() -> None:
    values = torch.tensor([1.0 + 1 / 1024, -0.3, 3e-5, 123.456, -1.0])
    many = rounded(values.expand(200_000, 5).contiguous()).float()
    step = values.abs() / 128
    assert ((many.mean(0) - values).abs() < 5 * step / 2 / 200_000**0.5).all()  # five standard errors
    assert many[:, 0].unique().tolist() == [1.0, 1.0078125]  # its two neighbours, nothing else
    assert many[:, 4].unique().tolist() == [-1.0]  # bf16 has it


@given(value=st.floats(-(2.0**126), 2.0**126, width=32))
@settings(max_examples=200)
def test_no_value_ends_further_than_one_step_of_bf16(value: float) -> None:
    exact = torch.tensor([value], dtype=torch.float32)
    off = (rounded(exact).float() - exact).abs()
    assert off <= max(abs(value) / 128, 1e-40)


def test_what_is_not_a_number_stays_that_way() -> None:
    every_bit = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000], dtype=torch.int32).view(torch.float32)  # NaN of GPUs first
    assert rounded(every_bit).isnan().all()
    assert rounded(torch.tensor([torch.inf, -torch.inf])).tolist() == [torch.inf, -torch.inf]


def test_an_update_too_small_for_bf16_is_not_lost() -> None:
    nearest = torch.ones(4096, dtype=torch.bfloat16)
    by_chance, rounding = nearest.clone(), Rounding(CPU, 0)
    update = torch.full((4096,), 1e-4)
    for _ in range(300):
        nearest += update
        rounding.add(by_chance, update, 1.0)
    assert (nearest == 1.0).all()
    assert by_chance.float().mean().item() == pytest.approx(1.03, abs=2e-3)


def test_chance_is_the_seed_s_own() -> None:
    values = torch.rand(1000)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rounded(values, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(rounded(values, seed=3), first)
    assert not torch.equal(rounded(values, seed=4), first)


def test_a_rank_with_a_shard_of_another_size_stays_in_step() -> None:
    results = []
    for size in (10, 700):
        rounding = Rounding(CPU, 0)
        rounding.add(torch.ones(size, dtype=torch.bfloat16), torch.rand(size), 1.0)
        shared = torch.ones(500, dtype=torch.bfloat16)
        rounding.add(shared, torch.full((500,), 0.001), 1.0)
        results.append(shared)
    assert torch.equal(*results)


def test_pieces_are_all_of_a_tensor_and_of_bounded_size() -> None:
    tensor = torch.zeros(PIECE + 5)
    for mine, theirs in pieces(tensor, torch.ones(PIECE + 5)):
        assert mine.numel() <= PIECE
        mine.add_(theirs)
    assert (tensor == 1.0).all()
    strided = torch.zeros(2, PIECE).t()
    ((whole, _),) = pieces(strided, strided)
    assert whole is strided
