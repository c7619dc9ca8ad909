"""Compare gates by the final loss: always, confidence, random at the same rate, two others, and AdamW.

    nice -n 15 python benchmarks/gates.py --out RESULTS.jsonl [--regime diverging main short] [--only TEXT] [--table]

Slow momentum without the rule of the loss's trend (``trust: off``), six paired seeds, in three regimes: the main job's
(pico, alpha 8, orthogonal jumps, 2,000 real steps if every cycle predicts; the tuned rates of the hybrid and of AdamW,
6.4e-3 and 1.6e-2), a short run (nano, 300 real steps) and one whose jumps are too long (pico, alpha 16, 600 real
steps). Each run appends one JSON line. Runs that are in the file are skipped, so the command can be stopped and started
again. A random gate jumps at the rate of the confidence gate of the same seed, so it is trained after it. ``--table``
prints what is there and trains nothing.

The immediate look takes a jump back if it raises the loss of one held-out batch by more than 0.5 % at once. The loss
trend is the default of slow momentum: no jump while the training loss rises (``trust: loss_trend``).

All runs of a regime but AdamW's have the same nominal steps, so a gate that predicts less takes more real steps; the
table has them.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.method import HybridTrainer
from hybrid_ray.method.phases import Position
from hybrid_ray.training import setup
from hybrid_ray.training.loop import train

HORIZON = 5
SEEDS = (1, 2, 3, 4, 5, 6)
MOST_RISE = 0.005  # that the immediate look accepts


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    preset: Any
    rate: float  # of the runs with jumps
    plain_rate: float  # of AdamW
    alpha: float
    steps: int  # real, if every cycle predicts
    matrices: str = "second_moment"


REGIMES = {
    "diverging": Regime(preset="pico", rate=1.6e-2, plain_rate=1.6e-2, alpha=16.0, steps=600),
    "main": Regime(preset="pico", rate=6.4e-3, plain_rate=1.6e-2, alpha=8.0, steps=2000, matrices="orthogonal"),
    "short": Regime(preset="nano", rate=5e-3, plain_rate=5e-3, alpha=8.0, steps=300),
}


class ImmediateLook(HybridTrainer):
    """Undoes a jump that raises the loss of one held-out batch at once."""

    before = 0.0

    def _predict(self, position: Position) -> None:
        assert self._cycle is not None
        if position.index == 1:
            self.before = self._held_out()
        super()._predict(position)
        if self._cycle.predictor.fraction == 1.0 and self._held_out() > (1.0 + MOST_RISE) * self.before:
            self.stats.withdraw_jump(self._cycle.withdraw(keep=True, loss=float("nan")))
            self.stats.count_event("undone")
            self.health.after_prediction, self.health.jump_check.predicted = False, 0

    @torch.no_grad()
    def _held_out(self) -> float:
        """The loss of a batch that changes from jump to jump."""
        assert self._look._decide is not None
        self.model.eval()
        loss = float(self._look._decide(self.stats.jumps))
        self.model.train()
        return loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One run."""

    gate: str
    regime: str
    seed: int
    hybrid: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> RunConfig:
        plain, regime = self.gate == "adamw", REGIMES[self.regime]
        settings: dict[str, Any] = {
            "predictor": {"name": "slow_momentum", "alpha": regime.alpha, "beta3": 0.996, "matrices": regime.matrices},
            "warmup_steps": 0, "full_steps": HORIZON, "prediction_horizon": HORIZON, "correct_steps": 0,
            "trust": "off", **self.hybrid,
        }  # fmt: skip
        config = TrainConfig(
            steps=regime.steps if plain else 2 * regime.steps, batch_size=16,
            learning_rate=regime.plain_rate if plain else regime.rate, min_lr_ratio=0.0, lr_warmup_fraction=0.1,
            schedule="linear", evaluations=1, sample_tokens=0, calibration_steps=5, device="cpu",
        )  # fmt: skip
        return RunConfig(
            arm="baseline" if plain else "hybrid",
            seed=self.seed,
            model=ModelConfig(preset=regime.preset),
            data=DataConfig(),
            train=config,
            hybrid=HybridConfig(predictor="none") if plain else HybridConfig(**settings),
        )


class Results:
    """The finished runs of a file, by regime, gate and seed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines if line.endswith("}")]

    def find(self, regime: str, gate: str, seed: int) -> dict[str, Any] | None:
        wanted = (regime, gate, seed)
        return next(
            (row for row in self.rows if tuple(row["spec"][n] for n in ("regime", "gate", "seed")) == wanted), None
        )

    def add(self, spec: Spec) -> dict[str, Any]:
        with patch.object(setup, "HybridTrainer", ImmediateLook if spec.gate == "look" else HybridTrainer):
            result = train(spec.run())
        statistics = result.statistics
        names = ("decisions", "jumps", "events", "calibration")
        row = {
            "spec": asdict(spec),
            "status": result.status,
            "val": result.heldout["val"].loss if "val" in result.heldout else None,
            "steps": result.steps,
            "real_steps": result.real_steps,
            "train_seconds": result.train_seconds,
            "part_seconds": dict(result.part_seconds),
            "statistics": {name: statistics.get(name) for name in names},
            "finished_at": time.time(),
        }
        if result.status != "stopped":
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.rows.append(row)
        return row


def queue(results: Results, regimes: Sequence[str]) -> Iterator[Spec]:
    """All runs, seed by seed. A random gate follows when its rate is known."""
    for regime in regimes:
        for seed in SEEDS:
            shared: dict[str, Any] = {"regime": regime, "seed": seed}
            yield Spec(gate="always", hybrid={"gate": "always"}, **shared)
            yield Spec(gate="confidence 0.3", hybrid={"gate": "confidence", "confidence_threshold": 0.3}, **shared)
            gated = results.find(gate="confidence 0.3", **shared)
            if gated is not None:
                statistics = gated["statistics"]
                rate = statistics["jumps"] / max(1, statistics["decisions"])
                yield Spec(gate="random", hybrid={"gate": "random", "gate_rate": rate}, **shared)
            settings = {"gate": "confidence", "confidence_threshold": 0.6}
            yield Spec(gate="confidence 0.6", hybrid=settings, **shared)
            yield Spec(gate="loss trend", hybrid={"gate": "always", "trust": "loss_trend"}, **shared)
            yield Spec(gate="look", hybrid={"gate": "always", "look_every": 1_000_000}, **shared)
            yield Spec(gate="adamw", **shared)


def table(results: Results) -> Iterator[str]:
    """Mean loss, jumps kept and real steps of each gate, its paired difference from always, and each seed's loss."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in results.rows:
        groups[row["spec"]["regime"], row["spec"]["gate"]].append(row)
    for (regime, gate), rows in sorted(groups.items()):
        losses = {row["spec"]["seed"]: float("inf") if row["val"] is None else row["val"] for row in rows}
        always = {row["spec"]["seed"]: row["val"] for row in groups[regime, "always"] if row["val"] is not None}
        pairs = [loss - always[seed] for seed, loss in losses.items() if seed in always]
        kept = [row["statistics"]["jumps"] - row["statistics"]["events"].get("undone", 0) for row in rows]
        difference = f"{fmean(pairs):+.4f}" if pairs else "-"
        if len(pairs) > 1:
            difference += f" +- {stdev(pairs) / len(pairs) ** 0.5:.4f}"
        each = " ".join(f"{seed}:{loss:.3f}" for seed, loss in sorted(losses.items()))
        yield (
            f"{regime:<9} {gate:<14} {fmean(losses.values()):.4f}  minus always {difference}  {fmean(kept):.0f} jumps, "
            f"{fmean(row['real_steps'] for row in rows):.0f} real steps  {each}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file with one JSON line per run")
    parser.add_argument("--regime", nargs="+", choices=REGIMES, default=list(REGIMES))
    parser.add_argument("--only", default="", help="only runs whose settings, as JSON, contain this text")
    parser.add_argument("--table", action="store_true", help="print the results; train none")
    arguments = parser.parse_args()
    results = Results(arguments.out)
    while not arguments.table:
        missing = (
            spec
            for spec in queue(results, arguments.regime)
            if arguments.only in json.dumps(asdict(spec)) and not results.find(spec.regime, spec.gate, spec.seed)
        )
        spec = next(missing, None)
        if spec is None:
            break
        row = results.add(spec)
        if row["status"] == "stopped":  # by a signal; the next call trains this run again
            break
        print(
            f"{spec.regime}, {spec.gate}, seed {spec.seed}: {row['val']} after {row['train_seconds']:.0f} s", flush=True
        )
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
