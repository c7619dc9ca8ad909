"""The memory a run is said to need, against PyTorch's own tracker on the run's own steps, and real allocations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_runs import Tokens, allocated_peak, run_of, text_task, tracked_peak

from hybrid_ray.config import RunConfig
from hybrid_ray.memory.allocation_log import AllocationLog
from hybrid_ray.memory.estimate import MemoryNeed, memory_need
from hybrid_ray.memory.trace import Batches, trace

BYTES, BPE = Tokens(257), Tokens(50_257)
BF16 = {"precision": "bf16", "weights": "bf16"}


def need(run: RunConfig, data: Tokens = BYTES) -> MemoryNeed:
    return memory_need(run, text_task(run, data))


CASES: list[tuple[str, RunConfig]] = [
    ("fp32", run_of("nano", 4)),
    ("autocast", run_of("nano", 4, precision="bf16")),
    ("bf16 weights", run_of("nano", 4, **BF16)),
    ("checkpointing, autocast", run_of("nano", 8, model={"activation_checkpointing": True}, precision="bf16")),
    ("chunks", run_of("nano", 16, model={"loss_chunks": 4})),
    ("padded vocabulary", run_of("nano", 8, model={"pad_vocab_to": 128})),
    ("dropout", run_of("nano", 8, model={"dropout": 0.1})),
    ("accumulated", run_of("nano", 2, accumulate=4)),
    ("sgd", run_of("nano", 1, length=16, optimizer="sgd")),
    ("adamwspam", run_of("nano", 1, length=16, optimizer="adamwspam")),
    ("ademamix", run_of("nano", 1, length=16, optimizer="ademamix")),
    ("slow_momentum", run_of("nano", 1, length=16, hybrid={"predictor": "slow_momentum"})),
    ("state on the host", run_of("nano", 1, length=16, optimizer_device="host", device="cuda")),
    ("state on the host, a CPU", run_of("nano", 1, length=16, optimizer_device="host")),
    ("no predictor", run_of("nano", 1, length=16, hybrid={"predictor": "none"})),
    ("snoo", run_of("nano", 1, length=16, hybrid={"predictor": "snoo"})),
    ("linear_fit", run_of("nano", 1, length=16, hybrid={"predictor": "linear_fit"})),
    ("bf16 buffers", run_of("nano", 1, length=16, hybrid={"buffer_dtype": "bfloat16"})),
    ("buffers on the host", run_of("nano", 1, length=16, hybrid={"buffer_device": "host"}, device="cuda")),
    ("buffers on the host, a CPU", run_of("nano", 1, length=16, hybrid={"buffer_device": "host"})),
]


@pytest.mark.parametrize("run", [run for _, run in CASES], ids=[name for name, _ in CASES])
def test_the_estimate_is_within_a_tenth_of_the_tracked_peak(run: RunConfig) -> None:
    assert need(run).allocated == pytest.approx(tracked_peak(run, BYTES), rel=0.1)


def test_a_deep_model_is_estimated_from_its_first_blocks() -> None:
    run = run_of("124M", 1, length=64, model={"activation_checkpointing": True}, accumulate=2)
    whole = trace(run, Batches.of(run, text_task(run, BPE))).peaks()
    assert need(run, BPE).allocated == pytest.approx(max(peak.total for peak in whole.values()), rel=1e-3)


@pytest.mark.parametrize("micro", [1, 8])
def test_the_estimate_is_within_a_tenth_of_what_is_really_allocated(micro: int) -> None:
    run = run_of("nano", micro, threads=1)
    assert need(run).allocated == pytest.approx(allocated_peak(run, BYTES), rel=0.1)


def test_memory_of_124m_is_16_bytes_a_parameter_and_8_for_the_predictor() -> None:
    found = need(run_of("124M", 1, length=16), BPE)
    parameters = 124_439_808
    assert found.weights == 4 * parameters
    assert found.optimizer == pytest.approx(8 * parameters, rel=1e-3)
    assert found.moments["optimizer"] == pytest.approx((16 + 8 + 0.5) * parameters, rel=0.02)  # and sampled coordinates


def test_where_optimizer_and_buffers_live_is_where_they_are_counted() -> None:
    """On a CPU host memory is the memory that trains."""

    def of(device: str, **train: Any) -> MemoryNeed:
        return need(run_of("nano", 1, length=16, device=device, **train))

    away: dict[str, Any] = {"optimizer_device": "host", "hybrid": {"buffer_device": "host"}}
    held, freed, kept = of("cuda"), of("cuda", **away), of("cpu", **away)
    assert held.optimizer > 0 == freed.optimizer
    assert freed.predictor < held.predictor / 4  # sampled coordinates
    assert (kept.optimizer, kept.predictor) == pytest.approx((held.optimizer, held.predictor), abs=64)


def test_host_memory_beside_a_gpu_is_pinned_in_powers_of_two() -> None:
    def of(**train: Any) -> MemoryNeed:
        return need(run_of("nano", 1, length=16, **train))

    away: dict[str, Any] = {"optimizer_device": "host", "hybrid": {"buffer_device": "host"}}
    plain, gpu, freed = of(), of(device="cuda"), of(device="cuda", **away)
    assert plain.host == 0
    assert gpu.host == gpu.process + gpu.weights  # drawn there
    state = gpu.optimizer + gpu.predictor - freed.predictor
    assert state < freed.host - freed.process < 2 * state


def test_8_bit_state_is_two_bytes_a_parameter_and_its_scales() -> None:
    plain, narrow = (
        need(run_of("124M", 1, length=16), BPE),
        need(run_of("124M", 1, length=16, optimizer="adamw8bit"), BPE),
    )
    assert narrow.optimizer == pytest.approx(2.03 * plain.optimizer / 8, rel=0.01)


def test_the_moments_are_in_order_and_the_first_is_the_peak() -> None:
    found = need(run_of("nano", 8))
    sizes = list(found.moments.values())
    assert sizes == sorted(sizes, reverse=True)
    assert (found.moment, found.allocated) == next(iter(found.moments.items()))
    assert found.moments["optimizer"] < found.moments["forward/after"]  # activations and logits are gone by then


@pytest.mark.parametrize("device, kept", [("cpu", True), ("cuda", False)])
def test_attention_with_dropout_keeps_its_matrix_on_a_cpu_alone(device: str, kept: bool) -> None:
    run = run_of("nano", 8, model={"dropout": 0.1})
    there = need(replace(run, train=replace(run.train, device=device)))
    matrix = 8 * 4 * 64 * 64 * 4  # of one layer: sequences, heads, positions twice, bytes
    assert (there.activations > need(run_of("nano", 8)).activations + 3 * matrix) is kept


def test_workers_hold_the_model_each_or_a_part_of_it() -> None:
    def of(workers: int, **train: Any) -> MemoryNeed:
        run = run_of("124M", 1, length=16, **train)
        return need(replace(run, workers=workers, train=replace(run.train, batch_size=workers)), BPE)

    alone, copies, parts = of(1), of(8), of(8, parallel="fsdp")
    assert of(1, parallel="fsdp") == alone
    assert (copies.weights, copies.optimizer) == (alone.weights, alone.optimizer)
    assert copies.allocated == alone.allocated + alone.weights  # DDP's buckets
    assert parts.optimizer == pytest.approx(alone.optimizer / 8, rel=1e-3)
    assert alone.weights / 8 < parts.weights < 0.6 * alone.weights  # tables and two blocks of 12 are whole


def test_a_log_says_what_was_there_at_the_peak() -> None:
    with AllocationLog() as log:
        with log.moment("first", "kept"):
            kept = torch.zeros(1000)
        with log.moment("second", "passing"):
            passing = kept + 1
            view = passing[1:]
            del passing
            more = torch.zeros(10)
        del view
        with log.moment("third", "passing"):
            torch.zeros(20)
    log.claim([more], "claimed")
    peaks = log.peaks()
    assert {name: dict(peak.parts) for name, peak in peaks.items()} == {
        "first": {"kept": 4000},
        "second": {"kept": 4000, "passing": 4000, "claimed": 40},
        "start": {"kept": 4000, "passing": 0, "claimed": 40},
        "third": {"kept": 4000, "passing": 80, "claimed": 40},
    }
    assert log.peaks(without={"kept"})["third"].total == 120
