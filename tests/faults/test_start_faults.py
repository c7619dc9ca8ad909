"""Fault 3 at the start of a run: what does not fit or compile is tried smaller, and the run that comes out is the same.

The injector is a limit on sequences in one forward: above it PyTorch's own message of an allocator that is full. It is
keyed on the model's forward and, with several ranks, on the rank.
"""

import gc
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.method.ranks import rank
from hybrid_ray.models import GPT2
from hybrid_ray.objective import Baseline, mismatches
from hybrid_ray.run_result import RunResult, StepRecord
from hybrid_ray.training.checkpoint.files import load
from hybrid_ray.training.hardware.out_of_memory import is_out_of_memory
from hybrid_ray.training.loop import train
from hybrid_ray.training.setup import TrainSetup
from hybrid_ray.training.start import settings
from hybrid_ray.training.step_costs import StepCosts, time_steps

CYCLES = HybridConfig(warmup_steps=6, full_steps=4, correct_steps=2, prediction_horizon=3, confidence_threshold=0.0)


def run_of(*, workers: int = 1, hybrid: HybridConfig = CYCLES, **train: Any) -> RunConfig:
    values = {"steps": 24, "batch_size": 16, "sequence_length": 32, "evaluations": 2, "calibration_steps": 5, **train}
    return RunConfig(
        model=ModelConfig(preset="micro"),
        data=DataConfig(max_bytes=1_000_000, heldout_tokens=8192),
        train=TrainConfig(**values),
        hybrid=hybrid,
        workers=workers,
    )


@contextmanager
def memory_for(sequences: int, *, of_rank: int | None = None) -> Iterator[None]:
    """While training, a forward of more sequences does not fit (on one rank, or on all)."""

    def allocate(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        mine = of_rank is None or of_rank == rank()
        if isinstance(module, GPT2) and module.training and mine and len(arguments[0]) > sequences:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

    handle = nn.modules.module.register_module_forward_hook(allocate)
    try:
        yield
    finally:
        handle.remove()


class Losses:
    def __init__(self) -> None:
        self.losses: list[float | None] = []

    def step(self, record: StepRecord) -> None:
        self.losses.append(record.loss)

    def evaluation(self, *_: object) -> None:
        return None


def weights(directory: Path, run: RunConfig) -> dict[str, torch.Tensor]:
    found = load(directory, run)
    assert found is not None
    return found.weights()


def test_the_settings_halve_to_divisors_of_the_batch() -> None:
    def sizes(**train: Any) -> list[tuple[bool, int]]:
        return [(setting.compiled, setting.micro_batch_size) for setting in settings(run_of(**train))]

    assert sizes(batch_size=128, micro_batch_size=32, compile=True) == [
        (True, 32), (False, 32), (False, 16), (False, 8), (False, 4), (False, 2), (False, 1),
    ]  # fmt: skip
    assert sizes(batch_size=60) == [(False, size) for size in (60, 30, 15, 6, 3, 1)]
    assert sizes(batch_size=60, workers=4, micro_batch_size=5) == [(False, 5), (False, 1)]


def test_a_run_cut_smaller_is_the_run_that_was_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Same data in the same order, same losses, same weights, though a forward holds 4 sequences and not 16."""
    run = run_of(checkpoint_every=24)
    whole, cut = Losses(), Losses()
    asked = train(run, reporter=whole, directory=tmp_path / "whole")
    with memory_for(4), caplog.at_level(logging.INFO, "hybrid_ray"):
        result = train(run, reporter=cut, directory=tmp_path / "cut")
    assert result.status == "finished"
    assert [loss for loss in cut.losses if loss] == pytest.approx([loss for loss in whole.losses if loss], rel=1e-5)
    assert result.replay.phases == asked.replay.phases
    assert result.tokens == asked.tokens
    for name, tensor in weights(tmp_path / "cut", run).items():
        torch.testing.assert_close(tensor, weights(tmp_path / "whole", run)[name], rtol=1e-4, atol=1e-5)
    used = {name: result.machine[name] for name in ("micro_batch_asked", "micro_batch_used", "accumulated")}
    assert used == {"micro_batch_asked": 16, "micro_batch_used": 4, "accumulated": 4}
    assert result.machine["effective_batch"] == asked.machine["effective_batch"] == 16
    assert result.machine["fallbacks"].count("can't allocate memory") == 2
    assert asked.machine["fallbacks"] == ""
    assert "effective batch 16 = 4 x 4 x 1 worker" in caplog.text
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["train"]["micro_batch_size"] is None  # as asked


def test_a_trial_that_fell_back_has_no_score_against_a_baseline_that_did_not() -> None:
    run = run_of(steps=10, evaluations=1, hybrid=HybridConfig(predictor="none"))
    baseline = Baseline.from_result(train(run))
    with memory_for(4):
        trial = train(run)
    (said,) = baseline.mismatches(trial.fingerprint)
    assert "'micro_batch_size': 16" in said
    assert "set train.micro_batch_size to 4" in said
    assert "train.compile" not in said
    assert baseline.mismatches(train(replace(run, seed=1)).fingerprint) == []
    named = train(replace(run, train=replace(run.train, micro_batch_size=4)))  # the mend
    assert Baseline.from_result(named).mismatches(trial.fingerprint) == []


LIMITED = """
import json, resource
from dataclasses import replace
from pathlib import Path
from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.training.loop import train

settings = TrainConfig(steps=10, batch_size=2, sequence_length=64, evaluations=1, calibration_steps=5)
data = DataConfig(max_bytes=1_000_000, heldout_tokens=8192)
run = RunConfig(model=ModelConfig(preset="micro"), data=data, train=settings, hybrid=HybridConfig(predictor="none"))
train(run)  # from here on nothing but a batch needs memory that was not needed before
there = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (there + 40 * 2**20, resource.RLIM_INFINITY))
print(json.dumps(train(replace(run, train=replace(settings, batch_size=128))).as_dict()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux to know a process's size")
def test_a_process_with_a_real_limit_trains_in_what_it_has() -> None:
    """No injector: 40 MiB more than a small run took, and a batch whose forward wants a hundred."""
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=200, check=True)
    result = RunResult.from_dict(json.loads(done.stdout.splitlines()[-1]))
    assert result.status == "finished"
    assert 1 < result.machine["micro_batch_used"] < 128
    assert result.machine["effective_batch"] == 128
    assert "DefaultCPUAllocator" in result.machine["fallbacks"]


def test_nothing_that_fits_is_said_with_all_that_was_tried() -> None:
    with memory_for(0), pytest.raises(TrialOutOfMemory, match="micro-batch 1: out of memory") as raised:
        train(run_of(batch_size=4))
    assert str(raised.value).count("out of memory") == 3
    train(run_of(steps=10, evaluations=1))  # nothing of it is left


def test_an_error_that_is_no_lack_of_memory_is_raised_at_once() -> None:
    class Wrong(RuntimeError):
        calls = 0

    def fail(module: nn.Module, *_: object) -> None:
        if isinstance(module, GPT2):
            Wrong.calls += 1
            raise Wrong("shapes do not match")

    handle = nn.modules.module.register_module_forward_hook(fail)
    try:
        with pytest.raises(Wrong):
            train(run_of())
    finally:
        handle.remove()
    assert Wrong.calls == 1


def optimizers() -> int:
    """How many there are in this process."""
    return sum(issubclass(type(each), torch.optim.Optimizer) for each in gc.get_objects())


def test_no_optimizer_of_the_start_is_there_when_the_run_begins() -> None:
    """Each has two thirds of the memory of a model's training. The collector may come late: it is off here."""
    there: list[int] = []

    class Counts(Losses):
        def step(self, record: StepRecord) -> None:
            if record.step == 1:
                there.append(optimizers())

    def counts_first(setup: TrainSetup) -> StepCosts:
        there.append(optimizers())
        return time_steps(setup)

    gc.collect()
    before = optimizers()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hybrid_ray.training.start.time_steps", counts_first)
            train(run_of(steps=10, evaluations=1), reporter=Counts())
    finally:
        gc.enable()
    assert [count - before for count in there] == [0, 1]  # before calibration; at the first step


@pytest.mark.parametrize("said", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_what_pinned_memory_and_cublas_say_is_out_of_memory(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_out_of_memory_in_the_middle_ends_the_run() -> None:
    class Full(Losses):
        def step(self, record: StepRecord) -> None:
            if record.step == 8:
                torch.empty(2**60)

    with pytest.raises(TrialOutOfMemory, match=r"lower train\.micro_batch_size"):
        train(run_of(), reporter=Full())


def test_a_stopped_run_goes_on_though_less_memory_is_left(tmp_path: Path) -> None:
    """Resumed beside a neighbour: in smaller micro-batches, from the same checkpoint, to the same losses."""

    class Stops(Losses):
        def evaluation(self, *_: object) -> str:
            return "stopped"

    run = run_of(checkpoint_every=6)
    alone, rest = Losses(), Losses()
    alone_result = train(run, reporter=alone)
    train(run, reporter=Stops(), directory=tmp_path)
    with memory_for(8):
        result = train(run, reporter=rest, directory=tmp_path)
    assert result.machine["micro_batch_used"] == 8
    assert [result.fingerprint["setting"]["micro_batch_size"], *result.fingerprint["setting"]["others"]] == [
        8, {"compiled": False, "micro_batch_size": 16},
    ]  # fmt: skip
    (said,) = Baseline.from_result(alone_result).mismatches(result.fingerprint)
    assert "set train.micro_batch_size to 8" in said
    fell = {**result.fingerprint, "setting": {"compiled": False, "micro_batch_size": 8}}
    assert "train it again" in mismatches(fell, result.fingerprint)[0]
    later = alone.losses[-len(rest.losses) :]
    assert 6 <= len(rest.losses) < 24
    assert [loss for loss in rest.losses if loss] == pytest.approx([loss for loss in later if loss], rel=1e-5)


@pytest.mark.slow
def test_compiled_then_eager_then_smaller() -> None:
    """The whole chain. Dynamo meets the limit while it traces, where it is an error of the compiler's."""
    with memory_for(8), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = train(run_of(steps=10, evaluations=1, compile=True))
    assert result.machine["compile_asked"]
    assert not result.machine["compiled"]
    tried = [part.split(":")[0] for part in result.machine["fallbacks"].split("; ") if "micro-batch" in part]
    assert tried == ["compiled, micro-batch 16", "eager, micro-batch 16"]
    assert result.machine["micro_batch_used"] == 8


def _on_rank(index: int, folder: str) -> None:
    torch.set_num_threads(1)
    root = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=index, world_size=2)
    with memory_for(2, of_rank=1):
        result = train(run_of(workers=2))
    torch.distributed.destroy_process_group()
    (root / f"rank-{index}.json").write_text(json.dumps(result.as_dict()))


@pytest.mark.slow
def test_the_rank_with_the_least_memory_decides_for_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_on_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (
        RunResult.from_dict(json.loads((tmp_path / f"rank-{index}.json").read_text())) for index in range(2)
    )
    alone = train(run_of())
    assert first.machine["micro_batch_asked"] == 8
    assert first.machine["micro_batch_used"] == second.machine["micro_batch_used"] == 2
    assert "another rank" in first.machine["fallbacks"]
    assert "can't allocate memory" in second.machine["fallbacks"]
    assert first.machine["effective_batch"] == 16 == 2 * 4 * 2
    assert [point.loss for point in first.curve] == pytest.approx([point.loss for point in alone.curve], rel=1e-5)
    assert first.fingerprint == second.fingerprint
