"""Memory, loss and step time of each way to save memory, alone and combined.

The seeds are the earlier projects; their memory tests 1 to 4 are among the cases.

    python benchmarks/memory.py [--preset nano] [--steps 200] [--cases NAME ...] [--json FILE]
    python benchmarks/memory.py --large 1.5B 350M          on a GPU: 1.5B limited to 16 GB, 350M to 2.5 GB
    python benchmarks/memory.py --large 1.5B 350M --plan   their estimated memory

Each case is a run of `hybrid_ray.training.loop.train` on the same text in the same order from the same seed. Columns:
the peak of allocated memory in any step and in Predict; the estimate of `hybrid-ray plan` (memory/estimate.py, without
the process itself); the final held-out loss; the median time of a real step; the memory that the seeds expected at
124M.

On a GPU (124M, 8 x 512, 100 steps) the peak is that of the CUDA allocator, by phase. On a CPU (nano, 16 x 64) it is
counted in a second, short run: memory/allocation_log.py follows every storage that PyTorch allocates and frees. On a
CPU device and host share their memory, so state moved to the host still counts. About five minutes on one CPU thread.
"""

import argparse
import contextlib
import gc
import importlib.util
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from figures import keep, middle, table

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.memory.allocation_log import AllocationLog
from hybrid_ray.memory.estimate import memory_need, size_text
from hybrid_ray.method.phase_memory import Slope
from hybrid_ray.run_result import Evaluation, Replay, RunResult, Status, StepRecord
from hybrid_ray.tasks import load_task
from hybrid_ray.training.loop import train

CYCLES = HybridConfig(
    warmup_steps=5,
    full_steps=10,
    prediction_horizon=5,
    correct_steps=5,
    confidence_threshold=0.0,
    first_fraction=0.0,
    off_fraction=0.0,
)
PLAIN = HybridConfig(predictor="none")
SMALL = {"activation_checkpointing": True, "loss_chunks": 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to save memory: its changes to the run, and the memory the seeds expected (124M; 2 GB without it)."""

    name: str
    seeds: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    hybrid: HybridConfig = PLAIN
    micro: bool = False  # micro-batches of one sequence, or of an eighth of the batch
    host: bool = False  # uses host memory, which saves nothing on a CPU


BF16, NARROW = {"precision": "bf16"}, {"precision": "bf16", "weights": "bf16"}
CASES = (
    Case(name="baseline", seeds="2 GB"),
    Case(name="mixed precision", seeds="1 GB", train=BF16),
    Case(name="accumulation", seeds="1.4 GB", micro=True),
    Case(name="hybrid", seeds="3.8 to 14.1 GB", hybrid=CYCLES),
    Case(
        name="predict-aware",
        seeds="1 GB in Predict",
        hybrid=replace(CYCLES, offload_optimizer=True),
        host=True,
    ),
    Case(
        name="the seeds' three",
        seeds="0.6 GB in Predict",
        train=BF16,
        micro=True,
        hybrid=replace(CYCLES, offload_optimizer=True),
        host=True,
    ),
    Case(name="bf16 weights", train=NARROW),
    Case(name="8-bit state", train={"optimizer": "adamw8bit"}),
    Case(name="state on host", train={"optimizer_device": "host"}, host=True),
    Case(name="checkpointing", model=SMALL),
    Case(name="predictor on host", hybrid=replace(CYCLES, buffer_device="host"), host=True),
    Case(name="predictor in bf16", hybrid=replace(CYCLES, buffer_dtype="bfloat16")),
    Case(
        name="all, 8-bit state",
        train={**NARROW, "optimizer": "adamw8bit"},
        model=SMALL,
        micro=True,
        hybrid=replace(CYCLES, buffer_device="host", buffer_dtype="bfloat16"),
        host=True,
    ),
    Case(
        name="all, state on host",
        train={**NARROW, "optimizer_device": "host"},
        model=SMALL,
        micro=True,
        hybrid=replace(CYCLES, buffer_device="host", buffer_dtype="bfloat16"),
        host=True,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Large:
    """A model that must fit into part of a card. Sizes in GB of 10^9 bytes."""

    preset: str
    steps: int
    batch: int
    length: int
    cap: float  # memory it may use on the card, including CUDA's own
    goal: float
    learning_rate: float
    train: Mapping[str, Any]
    hybrid: HybridConfig = PLAIN


_ON_HOST, _IN_8_BITS = {**NARROW, "optimizer_device": "host"}, {**NARROW, "optimizer": "adamw8bit"}
_HOST_CYCLES = replace(CYCLES, warmup_steps=100, buffer_device="host", buffer_dtype="bfloat16")
LARGE = {
    "1.5B": Large(
        preset="1.5B", steps=1000, batch=4, length=1024, cap=16, goal=14, learning_rate=2e-4, train=_IN_8_BITS
    ),
    "1.5B-host": Large(
        preset="1.5B",
        steps=1000,
        batch=4,
        length=1024,
        cap=16,
        goal=14,
        learning_rate=2e-4,
        train=_ON_HOST,
        hybrid=_HOST_CYCLES,
    ),
    "350M": Large(preset="350M", steps=100, batch=1, length=512, cap=2.5, goal=2, learning_rate=3e-4, train=_ON_HOST),
    "micro": Large(preset="micro", steps=20, batch=2, length=32, cap=1, goal=1, learning_rate=3e-3, train=NARROW),
}


class Listener:
    """Records real step times, phases and growth of GPU memory; with a ``log``, also the allocations of each step."""

    def __init__(self, log: AllocationLog | None = None) -> None:
        self.real: list[float] = []
        self.phases: list[str] = []
        self.growth = Slope()
        self._log, self._moment = log, contextlib.ExitStack()

    def step(self, record: StepRecord) -> None:
        self.phases.append(record.phase)
        if not record.predicted:
            self.real.append(record.seconds)
        if record.step > 10:
            self.growth.add(record.step, torch.cuda.memory_allocated() if torch.cuda.is_available() else 0)
        if self._log is not None:
            self._moment.close()
            self._moment.enter_context(self._log.moment(f"step {record.step + 1}", "run"))
            torch.empty(1)  # so that a step without allocations has the level of its start

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        self._moment.close()
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The result of a case; memory in bytes. ``predict`` and ``estimate_predict``: during Predict, None without it."""

    name: str
    seeds: str
    peak: int | None
    predict: int | None
    estimate: int
    estimate_predict: int | None
    loss: float | None
    step_seconds: float
    comparable: bool  # False if the plan omits host memory but the count includes it
    note: str

    def row(self) -> list[str]:
        return [
            self.name,
            size_text(self.peak) if self.peak else "not counted",
            size_text(self.estimate),
            f"{self.peak / self.estimate:.2f}" if self.peak and self.comparable else "",
            size_text(self.predict) if self.predict else "",
            f"{self.loss:.3f}" if self.loss is not None else "",
            f"{1e3 * self.step_seconds:.3g}",
            self.seeds,
            self.note,
        ]


HEADER = ["case", "peak", "plan", "peak/plan", "in Predict", "loss", "ms", "seeds expected", ""]


def run_of(case: Case, preset: str, *, steps: int, gpu: bool) -> RunConfig:
    """The run of a case: 8 x 512 on a GPU, as in the seeds, else 16 x 64."""
    batch, length = (8, 512) if gpu else (16, 64)
    settings = TrainConfig(
        steps=steps,
        batch_size=batch,
        micro_batch_size=batch // 8 if case.micro else None,
        sequence_length=length,
        learning_rate=6e-4 if gpu else 3e-3,
        device="cuda" if gpu else "cpu",
        evaluations=1,
        calibration_steps=5,
        sample_tokens=0,
    )
    return RunConfig(
        arm="baseline" if case.hybrid.predictor.name == "none" else "hybrid",
        model=replace(ModelConfig(preset=preset), **case.model),
        data=text(words=gpu),
        train=replace(settings, **case.train),
        hybrid=case.hybrid,
    )


def text(*, words: bool) -> DataConfig:
    """The source of the standard library, as bytes or with a BPE vocabulary of GPT-2's size (made once, about 20 s)."""
    if words:
        return DataConfig(tokenizer="bpe", vocab_size=50_257)
    return DataConfig(max_bytes=4_000_000, heldout_tokens=16_384)


def measure(case: Case, preset: str, *, steps: int, gpu: bool) -> Found:
    run = run_of(case, preset, steps=steps, gpu=gpu)
    need = memory_need(run, load_task(run))
    listener = Listener()
    free()
    result = train(run, reporter=listener)
    peaks = allocated(result) if gpu else counted(run)
    return Found(
        name=case.name,
        seeds=case.seeds,
        peak=max(peaks.values(), default=None),
        predict=peaks.get("predict"),
        estimate=need.allocated,
        estimate_predict=need.moments.get("predict"),
        loss=result.heldout["val"].loss if result.status == "finished" else None,
        step_seconds=middle(listener.real),
        comparable=gpu or not case.host,
        note=result.error or str(result.machine.get("fallbacks", "")),
    )


def allocated(result: RunResult) -> dict[str, int]:
    """Peaks of the CUDA allocator by phase."""
    return {phase: peak["allocated"] for phase, peak in result.statistics["memory"].items()}


def counted(run: RunConfig) -> dict[str, int]:
    """Peaks by phase in the first cycle of a run on a CPU, counted by allocation; empty for a compiled optimizer."""
    if run.train.optimizer == "adamw8bit":
        return {}
    log = AllocationLog()
    listener = Listener(log)
    with log:
        train(replace(run, train=replace(run.train, steps=25)), reporter=listener)
    peaks: defaultdict[str, int] = defaultdict(int)
    found = log.peaks()
    for number, phase in enumerate(listener.phases[1:], 2):  # the first step includes the set-up
        peaks[phase] = max(peaks[phase], found[f"step {number}"].total)
    peaks["evaluation"] = found[f"step {len(listener.phases) + 1}"].total  # it comes after the last step
    return dict(peaks)


def free() -> None:
    """Free the memory of the last case."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def capped(gigabytes: float) -> Iterator[None]:
    """Limit the GPU memory that PyTorch may allocate. CUDA itself uses some in addition."""
    if not torch.cuda.is_available():
        yield
        return
    free()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def large_run(name: str, *, steps: int | None, gpu: bool) -> RunConfig:
    """The run of a large model, with every setting that saves activations."""
    case = LARGE[name]
    settings = TrainConfig(
        steps=steps or case.steps,
        batch_size=case.batch,
        sequence_length=case.length,
        learning_rate=case.learning_rate,
        evaluations=5,
        calibration_steps=5,
        sample_tokens=0,
        device="cuda" if gpu else "cpu",
    )
    return RunConfig(
        arm="baseline" if case.hybrid.predictor.name == "none" else "hybrid",
        model=ModelConfig(preset=case.preset, pad_vocab_to=64 if gpu else 1, **SMALL),
        data=text(words=gpu),
        train=replace(settings, **case.train),
        hybrid=case.hybrid,
    )


def planned(name: str) -> str:
    """The estimated GPU memory of a large model; needs no GPU."""
    run = large_run(name, steps=None, gpu=True)
    need = memory_need(run, load_task(replace(run, data=replace(run.data, corpus="random"))))
    return f"{name}: plan {need.allocated / 1e9:.2f} GB, goal {LARGE[name].goal:g} GB"


def large(name: str, *, steps: int | None, gpu: bool) -> str:
    """Train a large model in limited memory; report whether it stays within its goal and trains without problems."""
    case, run = LARGE[name], large_run(name, steps=steps, gpu=gpu)
    need, listener = memory_need(run, load_task(run)), Listener()
    with capped(case.cap - need.process / 1e9):
        try:
            result = train(run, reporter=listener)
        except TrialOutOfMemory as error:
            return f"{name}: does not fit {case.cap:g} GB: {error}"
    events, curve = result.statistics.get("events"), ", ".join(f"{point.loss:.3f}" for point in result.curve)
    lines = [
        f"{name}: {result.status} after {result.steps:,} steps ({result.predicted_steps} predicted)"
        f"{', ' + result.error if result.error else ''}; held-out loss {curve}; events {events or 'none'}; "
        f"{1e3 * middle(listener.real):.0f} ms per real step; {result.machine.get('fallbacks') or 'no fallback'}"
    ]
    if gpu:
        peak = max(allocated(result).values()) / 1e9
        lines.append(
            f"  peak {peak:.2f} GB allocated, {'within' if peak <= case.goal else 'above'} the goal of {case.goal:g} "
            f"(limit {case.cap:g}, of which {need.process / 1e9:.1f} for CUDA itself); "
            f"plan {need.allocated / 1e9:.2f} GB; {_whole_device(result)}"
            f"memory grows by {listener.growth.value or 0.0:,.0f} bytes per step"
        )
    return "\n".join(lines)


def _whole_device(result: RunResult) -> str:
    seen = result.machine.get("gpu_peak_memory_bytes")
    return f"whole device {seen / 1e9:.2f} GB; " if seen else ""


def main() -> None:
    there = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default=None, help="default: 124M on a GPU, nano on a CPU")
    parser.add_argument("--steps", type=int, help="default: 100 on a GPU, 200 on a CPU")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--large", nargs="+", choices=LARGE, help="train these large models instead of the table")
    parser.add_argument("--plan", action="store_true", help="only estimate the memory of the large models")
    parser.add_argument("--cpu", action="store_true", help="on the CPU even if there is a GPU")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    gpu, found = there and not options.cpu, []
    without = importlib.util.find_spec("torchao") is None
    if options.large:
        for name in options.large:
            if options.plan:
                print(planned(name), flush=True)
            elif LARGE[name].train.get("optimizer") == "adamw8bit" and without:
                print(f"{name}: left out, its optimizer needs torchao (pip install torchao); {name}-host needs none")
            else:
                print(large(name, steps=options.steps, gpu=gpu), flush=True)
        return
    for case in CASES:
        if options.cases and case.name not in options.cases:
            continue
        if case.train.get("optimizer") == "adamw8bit" and without:
            print(f"{case.name}: left out, it needs torchao (pip install torchao)")
            continue
        preset = options.preset or ("124M" if gpu else "nano")
        found.append(measure(case, preset, steps=options.steps or (100 if gpu else 200), gpu=gpu))
        print("  ".join(found[-1].row()), flush=True)
        keep(options.json, map(asdict, found))
    print(table(HEADER, [one.row() for one in found]))
    how = "of the CUDA allocator" if gpu else "of all counted storages, including those of the host"
    print(f"peak: {how}; plan: without the process; loss: held-out, nats per token; ms: median real step")


if __name__ == "__main__":
    main()
