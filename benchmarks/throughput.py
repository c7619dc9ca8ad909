"""Tokens per second and MFU of `hybrid_ray.training.loop.train` without prediction, and of a loop like nanoGPT's.

    python benchmarks/throughput.py [--presets nano ...] [--against whole loop] [--pairs 12] [--json FILE]

On a GPU: 124M to 1.5B at 1024 tokens, bf16, compiled. On a CPU: small shapes, fp32, one thread, in CPU time, about a
minute. The two sides take turns, one block of steps each, in one process: the plain loop runs between steps of `train`,
so `train` is measured with everything it does around a step. Both have the same shape, batch, precision, compilation
and fused AdamW. ``whole`` compares with plain PyTorch throughout: its own model, batches and loop. ``loop`` compares
with the plain loop around our model. A ratio above 1 means that ours is faster. MFU is PaLM's (models/shapes.py).
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from figures import keep, middle, spread, table
from torch import Tensor, nn

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.data import prepare_text
from hybrid_ray.models import build_model
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, flops_per_token
from hybrid_ray.run_result import Evaluation, Replay, Status, StepRecord
from hybrid_ray.training.hardware.placement import choose_device
from hybrid_ray.training.loop import train

VOCABULARY = 50_304  # GPT-2's, rounded up to a multiple of 64 as nanoGPT does


# Dense bf16 FLOP/s from the data sheets, by a part of the name that PyTorch reports.
STATED_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "L4": 121e12}


class Work(NamedTuple):
    """The work that is timed: ``micro`` sequences per forward, ``accumulate`` forwards per step, ``block`` steps."""

    micro: int
    length: int
    vocabulary: int
    block: int
    accumulate: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a block."""
        return self.block * self.accumulate * self.micro * self.length


ON_CPU = {"micro": Work(8, 32, 257, 20), "nano": Work(16, 64, 257, 10), "124M": Work(1, 64, VOCABULARY, 1)}
ON_GPU = {  # four micro-batches per step, as in the seeds' 124M runs (32 x 4)
    "124M": Work(32, 1024, VOCABULARY, 4, accumulate=4),
    "350M": Work(16, 1024, VOCABULARY, 3, accumulate=4),
    "774M": Work(8, 1024, VOCABULARY, 3, accumulate=4),
    "1.5B": Work(8, 1024, VOCABULARY, 2, accumulate=4),
}


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).split(D, dim=2)
        q, k, v = (part.view(B, T, self.heads, D // self.heads).transpose(1, 2) for part in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).contiguous().view(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    """GPT-2 written in plain PyTorch."""

    def __init__(self, shape: GPT2Shape, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(PlainBlock(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = self.head(self.norm(h))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


class PlainLoop:
    """A training loop like nanoGPT's: it fetches the next batch while the device works, and never reads the loss."""

    def __init__(self, model: nn.Module, run: RunConfig, tokens: np.ndarray, device: torch.device) -> None:
        self.model, self.config, self.tokens, self.device = model.to(device), run.train, tokens, device
        self.forward = torch.compile(self.model) if run.train.compile else self.model
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": run.train.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=run.train.learning_rate, betas=run.train.betas, fused=True)
        self.micro, self.accumulate = run.micro_batch_size, run.accumulate
        bf16 = run.train.precision == "bf16"
        self.context = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        self.number, self.batch = 0, self.next_batch()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        length = self.config.sequence_length
        starts = torch.randint(len(self.tokens) - length, (self.micro,)).tolist()
        x = torch.stack([torch.from_numpy(self.tokens[i : i + length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(self.tokens[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        if self.device.type == "cpu":
            return x, y
        return tuple(part.pin_memory().to(self.device, non_blocking=True) for part in (x, y))

    def learning_rate(self) -> float:
        config, warmup = self.config, self.config.lr_warmup_fraction * self.config.steps
        if self.number < warmup:
            return config.learning_rate * (self.number + 1) / (warmup + 1)
        done = min(1.0, (self.number - warmup) / (config.steps - warmup))
        cosine = 0.5 * (1.0 + math.cos(math.pi * done))
        return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        for _ in range(self.accumulate):
            with self.context:
                loss = self.forward(*self.batch) / self.accumulate
            self.batch = self.next_batch()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1

    def block(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Turns:
    """Times both sides in turn, in the order ours, theirs, theirs, ours, ours, theirs, ...

    `train` calls it after every step; after the first block and every second one from there it runs two blocks of the
    other side. The first pair is a warmup and is dropped. The compiler counts per process, so `train` reports at its
    end that the model was compiled again: that is the other side's model.
    """

    def __init__(self, other: Callable[[], PlainLoop], *, steps: int, clock: Callable[[], float]) -> None:
        self.make, self.other, self.steps, self.clock = other, None, steps, clock
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.heard = 0
        self.began = clock()

    def step(self, record: StepRecord) -> None:
        self.heard += 1
        if self.heard % self.steps:
            return
        self.ours.append(self.clock() - self.began)
        if len(self.ours) % 2:
            # Made late, since `train` resets the compiler when it compiles its own model.
            self.other = self.other or self.make()
            for _ in range(2):
                started = self.clock()
                self.other.block(self.steps)
                self.theirs.append(self.clock() - started)
        self.began = self.clock()

    def evaluation(self, evaluation: Evaluation, step_seconds: float, replay: Replay) -> Status | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """The result of a preset. ``ratios``: their seconds / ours, for each pair of blocks. Rates are medians."""

    preset: str
    against: str
    device: str
    ours_tokens_per_second: float
    plain_tokens_per_second: float
    ours_mfu: float
    plain_mfu: float
    peak: str
    ratios: list[float]
    compiled: bool
    fallbacks: str  # ours fell back to a smaller micro-batch or no compilation, so the sides differ

    def row(self) -> list[str]:
        low, half, high = spread(self.ratios)
        return [
            self.preset,
            self.against,
            f"{self.ours_tokens_per_second:,.0f}",
            f"{self.plain_tokens_per_second:,.0f}",
            f"{self.ours_mfu:.1%}",
            f"{self.plain_mfu:.1%}",
            f"{half:.3f}",
            f"{low:.3f} to {high:.3f}",
            "compiled" if self.compiled else "eager",
            self.fallbacks,
        ]


HEADER = ["preset", "against", "ours tok/s", "plain tok/s", "ours MFU", "plain MFU", "ours/plain", "quartiles", "", ""]


def plain_run(preset: str, *, gpu: bool, compile: bool, steps: int) -> RunConfig:
    """A baseline run of the preset's size on random tokens."""
    work = (ON_GPU if gpu else ON_CPU)[preset]
    words = work.vocabulary == VOCABULARY
    return RunConfig(
        arm="baseline",
        model=ModelConfig(preset=preset, pad_vocab_to=64 if words else 1),
        data=DataConfig(
            corpus="random",
            tokenizer="bpe" if words else "bytes",
            vocab_size=50_257 if words else None,
            heldout_tokens=4096,
        ),
        train=TrainConfig(
            steps=max(10, steps),
            batch_size=work.micro * work.accumulate,
            micro_batch_size=work.micro,
            sequence_length=work.length,
            learning_rate=6e-4,
            precision="bf16" if gpu else "fp32",
            compile=compile,
            device="cuda" if gpu else "cpu",
            evaluations=1,
            calibration_steps=5,
            sample_tokens=0,
        ),
        hybrid=HybridConfig(predictor="none"),
    )


def measure(preset: str, *, against: str, pairs: int, gpu: bool, compile: bool) -> Throughput:
    """Compare `train` with the plain loop."""
    work = (ON_GPU if gpu else ON_CPU)[preset]
    run = plain_run(preset, gpu=gpu, compile=compile, steps=work.block * (pairs + 1))
    device, corpus = choose_device(run), prepare_text(run.data)
    shape = PRESETS[preset]

    def other() -> PlainLoop:
        torch.manual_seed(0)
        if against == "whole":
            return PlainLoop(PlainGPT(shape, work.vocabulary), run, corpus.train, device)
        model = build_model(run.model, vocab_size=corpus.classes, sequence_length=work.length)
        return PlainLoop(model, run, corpus.train, device)

    turns = Turns(other, steps=work.block, clock=time.perf_counter if gpu else time.process_time)
    result = train(run, reporter=turns)
    ours, theirs = turns.ours[1 : pairs + 1], turns.theirs[1 : pairs + 1]
    rate, source = peak(device)
    flops = flops_per_token(shape, work.vocabulary, work.length)
    speeds = [work.tokens / middle(seconds) for seconds in (ours, theirs)]
    return Throughput(
        preset=preset,
        against=against,
        device=torch.cuda.get_device_name(device) if gpu else "one CPU thread",
        ours_tokens_per_second=speeds[0],
        plain_tokens_per_second=speeds[1],
        ours_mfu=speeds[0] * flops / rate,
        plain_mfu=speeds[1] * flops / rate,
        peak=source,
        ratios=[other / own for own, other in zip(ours, theirs, strict=True)],
        compiled=bool(result.machine.get("compiled")),
        fallbacks=str(result.machine.get("fallbacks", "")),
    )


def peak(device: torch.device) -> tuple[float, str]:
    """Peak FLOP/s for the MFU, and its source: the data sheet, or a matrix product measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, rate in STATED_PEAKS.items():
            if part in name:
                return rate, f"{rate / 1e12:.0f} TFLOP/s, from the data sheet for dense bf16 on {name}"
        rate = _product_rate(device, 8192, torch.bfloat16, time.perf_counter)
        return rate, f"{rate / 1e12:.0f} TFLOP/s, a bf16 matrix product measured here on {name}"
    rate = _product_rate(device, 1024, torch.float32, time.process_time)
    return rate, f"{rate / 1e9:.0f} GFLOP/s, an fp32 matrix product measured here on one thread"


def _product_rate(device: torch.device, side: int, dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOP/s of the fastest of ten products of two square matrices."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = clock()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices={**ON_CPU, **ON_GPU}, help="default: those for the device")
    parser.add_argument("--against", nargs="+", choices=["whole", "loop"], default=["whole", "loop"])
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks, one of ours and one of theirs")
    parser.add_argument("--eager", action="store_true", help="do not compile on a GPU")
    parser.add_argument("--cpu", action="store_true", help="on the CPU even if there is a GPU")
    parser.add_argument("--json", help="file for the results")
    options = parser.parse_args()
    gpu = torch.cuda.is_available() and not options.cpu
    presets = options.presets or ([*ON_GPU] if gpu else ["micro", "nano"])
    if unknown := set(presets) - set(ON_GPU if gpu else ON_CPU):
        parser.error(f"no batch is set for {', '.join(sorted(unknown))} on this device")
    found, compile = [], gpu and not options.eager
    for preset in presets:
        for against in options.against:
            found.append(measure(preset, against=against, pairs=options.pairs, gpu=gpu, compile=compile))
            keep(options.json, map(asdict, found))
            print(f"{preset} against {against}: {middle(found[-1].ratios):.3f}", flush=True)
    print(table(HEADER, [one.row() for one in found]))
    print(f"MFU relative to {found[0].peak}; {found[0].device}")


if __name__ == "__main__":
    main()
