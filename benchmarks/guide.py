"""Make the tables of docs/gpu_guide.md: settings for a card and a model, with the expected peak of GPU memory.

    python benchmarks/guide.py [--cards 16 24 80] [--models 124M ...]     print the tables as Markdown
    python benchmarks/guide.py --write                                    write them into docs/gpu_guide.md
    python benchmarks/guide.py --measure                                  on a GPU: train each row for a few steps

Settings that save memory are added in order of their cost in speed, until 4 sequences of 1,024 tokens fit and a tenth
of the card stays free. Then the largest micro-batch up to 32 that still fits is used. The peak is the estimate of
`hybrid-ray plan` for the job with the settings of the row; the next column is the part that PyTorch allocates.
``--measure`` trains each row without compilation, with PyTorch limited to the memory that the card would leave it, and
prints the peak that PyTorch allocated. It stores the peaks in docs/gpu_guide_measured.json or in the file given with
``--json``; the tables show those in the former. The tables take one or two minutes on one CPU thread.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from figures import GIB

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.errors import TrialOutOfMemory
from hybrid_ray.memory.estimate import MemoryNeed, memory_need
from hybrid_ray.tasks import Task, load_task
from hybrid_ray.training.loop import train

ROOT = Path(__file__).parents[1]
JOB = "jobs/gpt2_124m_single_gpu.yaml"
GUIDE = ROOT / "docs/gpu_guide.md"
MEASURED = ROOT / "docs/gpu_guide_measured.json"
BEGIN, END = "<!-- tables: python benchmarks/guide.py --write -->", "<!-- end of tables -->"

CARDS = (16, 24, 80)
MODELS = ("124M", "350M", "774M", "1.5B")
HEADER = "| model | micro-batch x accumulated | settings to add | peak (GiB) | by PyTorch (GiB) | *measured* (GiB) |"
ENOUGH = 4  # sequences in a micro-batch; with fewer a GPU is poorly used
MORE = (8, 16, 32)
LESS = (2, 1)
FREE = 0.1  # share of a card left free, for memory that the estimate does not include

# Settings that save memory, in order of their cost in speed. Each rung is added to those before it.
RUNGS = (
    ("model.loss_chunks=8",),
    ("hybrid.buffer_device=host",),
    ("model.activation_checkpointing=true",),
    ("train.weights=bf16", "train.optimizer=adamw8bit"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The settings for one model on a card of ``card`` GiB."""

    card: int
    model: str
    micro: int
    settings: tuple[str, ...]
    need: MemoryNeed

    @property
    def fits(self) -> bool:
        return self.need.total <= (1 - FREE) * self.card * GIB

    @property
    def overrides(self) -> tuple[str, ...]:
        """In the form of ``--set``."""
        return (f"model.preset={self.model}", f"train.micro_batch_size={self.micro}", *self.settings)

    def line(self, measured: dict[str, float]) -> str:
        seen = measured.get(key(self.card, self.overrides))
        peak = f"{seen / GIB:.1f}" if seen else "not yet"
        settings = ", ".join(f"`{setting}`" for setting in self.settings) or "nothing"
        return (
            f"| {self.model} | {self.micro} x {64 // self.micro} | {settings} | "
            f"{self.need.total / GIB:.1f} *estimated* | {self.need.allocated / GIB:.1f} *estimated* | {peak} |"
        )


def key(card: int, overrides: Sequence[str]) -> str:
    return f"{card} GB: {' '.join(overrides)}"


@cache
def need(overrides: tuple[str, ...]) -> MemoryNeed:
    """The estimate of `hybrid-ray plan` for the job with these settings."""
    job = job_of(overrides)
    return memory_need(job.run(), like(job))


def job_of(overrides: Sequence[str]) -> JobConfig:
    return read_job(ROOT / JOB, overrides)


def like(job: JobConfig) -> Task:
    """The job's task on random tokens of the same vocabulary: as much memory as with text, and no text to prepare."""
    return load_task(replace(job, data=replace(job.data, corpus="random", max_bytes=None)).run())


def best(card: int, model: str) -> Row:
    """The fastest settings that fit.

    Raises:
        ValueError: no settings fit.
    """
    for count in range(len(RUNGS) + 1):
        settings = tuple(setting for rung in RUNGS[:count] for setting in rung)
        row = row_of(card, model, ENOUGH, settings)
        if row.fits:
            for micro in MORE:
                larger = row_of(card, model, micro, settings)
                if not larger.fits:
                    break
                row = larger
            return row
    for micro in LESS:
        row = row_of(card, model, micro, settings)
        if row.fits:
            return row
    raise ValueError(f"{model} does not fit a card of {card} GB with any of the settings here")


def row_of(card: int, model: str, micro: int, settings: tuple[str, ...]) -> Row:
    overrides = (f"model.preset={model}", f"train.micro_batch_size={micro}", *settings)
    return Row(card=card, model=model, micro=micro, settings=settings, need=need(overrides))


def tables(cards: Sequence[int], models: Sequence[str]) -> Iterator[str]:
    """Lines of Markdown: one table per card."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    for card in cards:
        yield f"**{card} GB card**"
        yield ""
        yield HEADER
        yield "|---|---|---|---|---|---|"
        for model in models:
            yield best(card, model).line(measured)
        yield ""


def write(lines: Sequence[str]) -> None:
    text = GUIDE.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    GUIDE.write_text("\n".join((head + BEGIN, "", *lines, END + tail)))


def measure(cards: Sequence[int], models: Sequence[str], kept: Path) -> None:
    """Train each row for a few steps in part of this GPU, and store the peak that PyTorch allocates."""
    from memory import allocated, capped

    measured = json.loads(kept.read_text()) if kept.exists() else {}
    for row in (best(card, model) for card in cards for model in models):
        job = job_of(row.overrides)
        hybrid = replace(
            job.hybrid,
            warmup_steps=2,
            full_steps=3,
            prediction_horizon=3,
            confidence_threshold=0.0,
            first_fraction=0.0,
            off_fraction=0.0,
        )
        few = replace(job.train, steps=14, evaluations=1, calibration_steps=5, compile=False)
        data = replace(job.data, corpus="random")
        run = replace(job, train=few, hybrid=hybrid, data=data).run()
        with capped((row.card * GIB - row.need.process) / 1e9):
            try:
                result = train(run)
            except TrialOutOfMemory as error:
                print(f"{key(row.card, row.overrides)}: {error}", flush=True)
                continue
        peak = max(allocated(result).values())
        measured[key(row.card, row.overrides)] = peak
        kept.write_text(json.dumps(measured, indent=1) + "\n")
        line = f"{peak / GIB:.1f} GiB allocated; estimate {row.need.allocated / GIB:.1f} GiB"
        print(f"{key(row.card, row.overrides)}: {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", nargs="+", type=int, default=CARDS, help="memory of each card in GiB")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument(
        "--write", action="store_true", help="write the tables of all cards and models into docs/gpu_guide.md"
    )
    parser.add_argument("--measure", action="store_true", help="train each row on this GPU")
    parser.add_argument("--json", type=Path, default=MEASURED, help="where --measure stores its peaks")
    options = parser.parse_args()
    if options.measure:
        if not torch.cuda.is_available():
            parser.error("--measure needs a GPU, and PyTorch finds none")
        measure(options.cards, options.models, options.json)
        return
    lines = list(tables(CARDS, MODELS) if options.write else tables(options.cards, options.models))
    if options.write:
        write(lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
