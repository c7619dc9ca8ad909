"""Compare step times of a hybrid run and a baseline, by phase and by part, and with the seeds' step times.

    python benchmarks/step_times.py [--sizes nano seeds full] [--json FILE]

The hybrid side is a whole run of `hybrid_ray.training.loop.train`. After each of its nominal steps the baseline (same
model and batch, trainer with prediction off) does one step, so other programs disturb both equally. The tokens are
random, and the confidence threshold is 0, so that there are predicted steps to time. By phase: the median of a step's
synchronised seconds, without the first step of each phase. By part: the trainer's own clock, per real step
(``predict``: per predicted step); ``overhead`` is the trainer's own work.

The seeds are the earlier projects. The size ``seeds`` is their setting: 124M, 4 x 64 tokens, Adam at 6e-4, 50 steps,
fp32. ``full`` is 124M at 32 x 1024 in bf16, compiled, on a GPU. ``nano`` takes half a minute on one CPU thread.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace

import torch
from figures import keep, spread, table

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.run_result import PHASES, Evaluation, Replay, RunResult, Status, StepRecord
from hybrid_ray.tasks import load_task
from hybrid_ray.training.hardware.placement import choose_device
from hybrid_ray.training.loop import train
from hybrid_ray.training.setup import TrainSetup, synchronize

# From the seeds' phase 2B validation (RTX 5080): milliseconds per step, as ranges where they give ranges.
SEEDS_BASELINE = (500.0, 600.0)
SEEDS = {"warmup": (700.0, 4600.0), "full": (700.0, 700.0), "predict": (20.0, 300.0), "correct": (70.0, 300.0)}

QUICK = HybridConfig(
    warmup_steps=5,
    full_steps=10,
    prediction_horizon=5,
    correct_steps=5,
    correction_interval=0,
    confidence_threshold=0.0,
    first_fraction=0.0,
    off_fraction=0.0,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is trained. ``vocabulary`` None: bytes."""

    preset: str
    batch: int
    length: int
    steps: int
    vocabulary: int | None = None
    bf16: bool = False


SIZES = {
    "micro": Size(preset="micro", batch=4, length=32, steps=60),
    "nano": Size(preset="nano", batch=16, length=64, steps=400),
    "seeds": Size(preset="124M", batch=4, length=64, steps=50, vocabulary=50_257),
    "full": Size(preset="124M", batch=32, length=1024, steps=200, vocabulary=50_257, bf16=True),
}


class Baseline:
    """Does plain steps on demand."""

    def __init__(self, run: RunConfig) -> None:
        self.bench = TrainSetup(run, load_task(run), choose_device(run))
        if run.train.compile:
            self.bench.compile()
        self.seconds: list[float] = []

    def begin(self) -> None:
        """A few warmup steps, because `train` has reset our compilation meanwhile; then start again."""
        self.start_anew()
        for _ in range(3):
            self.step()
        self.start_anew()

    def start_anew(self) -> None:
        self.training = self.bench.fresh(self.bench.run)
        self.closure = self.bench.next_loss(self.training, lambda tokens: None)
        self.seconds.clear()

    def step(self) -> None:
        synchronize(self.bench.device)
        started = time.perf_counter()
        self.training.trainer.step(self.closure)
        synchronize(self.bench.device)
        self.seconds.append(time.perf_counter() - started)


class Turns:
    """After every step of the hybrid run, does one step of the baseline."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.hybrid: defaultdict[str, list[float]] = defaultdict(list)

    def step(self, record: StepRecord) -> None:
        if not self.hybrid:
            self.baseline.begin()
        self.hybrid[record.phase].append(record.seconds)
        self.baseline.step()

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Seconds of each step of the baseline and of the hybrid by phase, and the baseline's seconds by part."""

    size: Size
    device: str
    baseline: list[float]
    hybrid: dict[str, list[float]]
    baseline_parts: dict[str, float]
    result: RunResult


def run_of(size: Size, *, device: str) -> RunConfig:
    data = DataConfig(
        corpus="random",
        tokenizer="bpe" if size.vocabulary else "bytes",
        vocab_size=size.vocabulary,
        heldout_tokens=4096,
    )
    settings = TrainConfig(
        steps=size.steps,
        batch_size=size.batch,
        sequence_length=size.length,
        optimizer="adamw" if size.bf16 else "adam",
        learning_rate=6e-4,
        precision="bf16" if size.bf16 else "fp32",
        compile=size.bf16,
        device=device,
        evaluations=1,
        calibration_steps=5,
        sample_tokens=0,
    )
    return RunConfig(model=ModelConfig(preset=size.preset), data=data, train=settings, hybrid=QUICK)


def measure(size: Size, *, device: str) -> StepTimes:
    """Time both sides in one run."""
    run = run_of(size, device=device)
    baseline = Baseline(replace(run, arm="baseline", hybrid=HybridConfig(predictor="none")))
    turns = Turns(baseline)
    result = train(run, reporter=turns)
    return StepTimes(
        size=size,
        device=torch.cuda.get_device_name() if device == "cuda" else "one CPU thread",
        baseline=baseline.seconds,
        hybrid=dict(turns.hybrid),
        baseline_parts=baseline.training.trainer.clock.seconds(),
        result=result,
    )


def by_phase(found: StepTimes) -> str:
    """Milliseconds per step by phase, and relative to a baseline step: ours and the seeds'."""
    plain = found.baseline[1:]
    base, seeds_base = spread(plain)[1], sum(SEEDS_BASELINE) / 2
    rows = [["baseline", len(plain), _milliseconds(plain), "1", _range(SEEDS_BASELINE), "1"]]
    for phase in PHASES:
        seconds = found.hybrid.get(phase, [])[1:]
        if seconds:
            ours, seeds = f"{spread(seconds)[1] / base:.3g}", SEEDS[phase]
            of_theirs = _range((seeds[0] / seeds_base, seeds[1] / seeds_base), ".2g")
            rows.append([phase, len(seconds), _milliseconds(seconds), ours, _range(seeds), of_theirs])
    return table(["phase", "steps", "ms per step (quartiles)", "/ baseline", "seeds' ms", "seeds' / baseline"], rows)


def by_part(found: StepTimes) -> str:
    """Milliseconds of each part, per step that has the part."""
    result, rows = found.result, []
    for part in sorted({*found.baseline_parts, *result.part_seconds}, key=_order):
        steps = result.predicted_steps if part == "predict" else result.real_steps
        plain = 1e3 * found.baseline_parts.get(part, 0.0) / len(found.baseline)
        hybrid = 1e3 * result.part_seconds.get(part, 0.0) / max(1, steps)
        ratio = f"{hybrid / plain:.3f}" if plain > 1e-3 else ""
        rows.append([part, f"{plain:.3f}", f"{hybrid:.3f}", ratio])
    return table(["part, ms per step that has it", "baseline", "hybrid", "hybrid/baseline"], rows)


def whole(found: StepTimes) -> str:
    """Both sides in one line, the upper bound of the speedup, and the growth of GPU memory."""
    share, seconds = found.result.predicted_share, found.result.train_seconds
    lines = [
        f"{found.result.steps} nominal steps, {share:.0%} predicted: baseline {sum(found.baseline):.2f} s, hybrid "
        f"{seconds:.2f} s, {sum(found.baseline) / seconds:.3f} times as fast; upper bound {1 / (1 - share):.3f}",
        "seeds: 50 steps, 40% predicted, 31.3 s and 25.1 s, 1.25 times as fast (their predicted steps moved no weight)",
    ]
    slope = found.result.statistics.get("memory_bytes_a_step")
    if slope is not None:
        lines.append(f"GPU memory grows by {slope:,.0f} bytes per step (seeds: 3.8 to 14.1 GB in 50 steps)")
    return "\n".join(lines)


def _milliseconds(seconds: list[float]) -> str:
    low, half, high = (1e3 * value for value in spread(seconds))
    return f"{half:.3g} ({low:.3g} to {high:.3g})"


def _range(edges: tuple[float, ...] | list[float], form: str = "g") -> str:
    low, high = (format(edge, form) for edge in edges)
    return low if low == high else f"{low} to {high}"


def _order(part: str) -> tuple[int, str]:
    known = ("data", "forward", "backward", "optimizer", "overhead", "predict", "offload")
    return (known.index(part) if part in known else len(known), part)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["seeds", "full"] if gpu else ["nano"])
    parser.add_argument("--cpu", action="store_true", help="on the CPU even if there is a GPU")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    device, kept = "cuda" if gpu and not options.cpu else "cpu", []
    for name in options.sizes:
        found = measure(SIZES[name], device=device)
        kept.append(asdict(found))
        keep(options.json, kept)
        size = found.size
        print(f"{name}: {size.preset}, {size.batch} x {size.length}, {size.steps} steps, {found.device}")
        print(by_phase(found), by_part(found), whole(found), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
