"""Compare gates by the final loss: always, confidence, random at the same rate. Store one JSON line for each run.

    nice -n 15 python benchmarks/gates.py --out RESULTS.jsonl [--steps 2400] [--only TEXT] [--table]

Slow momentum on `pico` at AdamW's learning rate of the earlier trials, 6e-3 (linear to zero, warmup a tenth of the
run), once with alpha 8, where always jumping is safe, and once with alpha 16, where it is not. Runs that are in the
file are skipped, so the command can be stopped and started again. A random gate jumps at the rate of the confidence
gate of the same seed, so it is trained after it. ``--table`` prints what is there and trains nothing.

All runs have the same nominal steps, so a gate that predicts less takes more real steps; the table has them.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.training.loop import train

RATE, HORIZON = 6e-3, 5
SEEDS = (1, 2, 3)
ALPHAS = (8.0, 16.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One run."""

    gate: str
    alpha: float
    steps: int  # real, if every cycle predicts
    seed: int
    hybrid: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> RunConfig:
        plain = self.gate == "adamw"
        settings: dict[str, Any] = {
            "predictor": {"name": "slow_momentum", "alpha": self.alpha, "beta3": 0.996},
            "warmup_steps": 0, "full_steps": HORIZON, "prediction_horizon": HORIZON, "correct_steps": 0,
            "trust": "off", **self.hybrid,
        }  # fmt: skip
        config = TrainConfig(
            steps=self.steps if plain else 2 * self.steps, batch_size=16, learning_rate=RATE, min_lr_ratio=0.0,
            lr_warmup_fraction=0.1, schedule="linear", evaluations=1, sample_tokens=0, calibration_steps=5,
            device="cpu",
        )  # fmt: skip
        return RunConfig(
            arm="baseline" if plain else "hybrid",
            seed=self.seed,
            model=ModelConfig(preset="pico"),
            data=DataConfig(),
            train=config,
            hybrid=HybridConfig(predictor="none") if plain else HybridConfig(**settings),
        )


class Results:
    """The finished runs of a file, by gate, alpha, steps and seed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    def find(self, gate: str, alpha: float, steps: int, seed: int) -> dict[str, Any] | None:
        wanted = (gate, alpha, steps, seed)
        names = ("gate", "alpha", "steps", "seed")
        return next((row for row in self.rows if tuple(row["spec"][name] for name in names) == wanted), None)

    def add(self, spec: Spec) -> dict[str, Any]:
        result = train(spec.run())
        statistics = result.statistics
        names = (
            "decisions", "jumps", "events", "paid_back_by_confidence", "mean_outcome_with_jump", "mean_outcome_without",
        )  # fmt: skip
        row = {
            "spec": asdict(spec),
            "status": result.status,
            "val": result.heldout["val"].loss if "val" in result.heldout else None,
            "steps": result.steps,
            "real_steps": result.real_steps,
            "train_seconds": result.train_seconds,
            "plain_step": result.plain_step,
            "part_seconds": dict(result.part_seconds),
            "statistics": {name: statistics.get(name) for name in names},
            "finished_at": time.time(),
        }
        if result.status != "stopped":
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.rows.append(row)
        return row


def queue(results: Results, steps: int) -> Iterator[Spec]:
    """All runs, seed by seed. A random gate follows when its rate is known."""
    for seed in SEEDS:
        for alpha in ALPHAS:
            shared: dict[str, Any] = {"alpha": alpha, "steps": steps, "seed": seed}
            yield Spec(gate="always", hybrid={"gate": "always"}, **shared)
            yield Spec(gate="confidence 0.3", hybrid={"gate": "confidence", "confidence_threshold": 0.3}, **shared)
            gated = results.find("confidence 0.3", **shared)
            if gated is not None:
                statistics = gated["statistics"]
                rate = statistics["jumps"] / max(1, statistics["decisions"])
                yield Spec(gate="random", hybrid={"gate": "random", "gate_rate": rate}, **shared)
    for seed in SEEDS:
        yield Spec(gate="adamw", alpha=0.0, steps=steps, seed=seed)
        for alpha in ALPHAS:
            settings = {"gate": "confidence", "confidence_threshold": 0.6}
            yield Spec(gate="confidence 0.6", hybrid=settings, alpha=alpha, steps=steps, seed=seed)


def table(results: Results) -> Iterator[str]:
    """Mean loss and predicted share of each gate, then the loss of each seed."""
    groups: dict[tuple[int, float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in results.rows:
        spec = row["spec"]
        groups[spec["steps"], spec["alpha"], spec["gate"]].append(row)
    for (steps, alpha, gate), rows in sorted(groups.items()):
        losses = [float("inf") if row["val"] is None else row["val"] for row in rows]
        shares = [1.0 - row["real_steps"] / row["steps"] for row in rows]
        each = " ".join(f"{loss:.3f}" for loss in losses)
        real = fmean(row["real_steps"] for row in rows)
        yield (
            f"{steps} alpha {alpha:<4g} {gate:<15} {fmean(losses):.4f}  predicted {fmean(shares):5.1%}, "
            f"{real:.0f} real steps  seeds: {each}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file with one JSON line per run")
    parser.add_argument("--steps", type=int, default=2400, help="real steps of a run in which every cycle predicts")
    parser.add_argument("--only", default="", help="only runs whose settings, as JSON, contain this text")
    parser.add_argument("--table", action="store_true", help="print the results; train none")
    arguments = parser.parse_args()
    results = Results(arguments.out)
    while not arguments.table:
        missing = (
            spec
            for spec in queue(results, arguments.steps)
            if arguments.only in json.dumps(asdict(spec))
            and not results.find(spec.gate, spec.alpha, spec.steps, spec.seed)
        )
        spec = next(missing, None)
        if spec is None:
            break
        row = results.add(spec)
        if row["status"] == "stopped":  # by a signal; the next call trains this run again
            break
        print(f"{spec.gate}, alpha {spec.alpha:g}, seed {spec.seed}: {row['val']} after {row['train_seconds']:.0f} s")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
