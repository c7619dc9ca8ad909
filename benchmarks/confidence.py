"""Does confidence say whether a jump will be paid back? Dynamics models and simple scores, on real training runs.

    python benchmarks/confidence.py collect --regime main --seed 0 --out cycles.jsonl     # main, short or diverging
    python benchmarks/confidence.py score cycles.jsonl [--tolerance 0.01]
    python benchmarks/confidence.py live [--regime main short] [--seeds 1]

collect trains with slow momentum and jumps of random length (none, a quarter, a half, all), and writes a line per
cycle: the 64 features before it, the jump, and the outcome that the trainer measured from training losses. For
each jump a twin goes without it, from the same weights and on the same batches. The effect of the jump is log(loss with
the jump / loss without it) on the same val batches at the cycle's end: what real steps alone would give, measured and
not extrapolated, with most of the noise cancelled. Of every 20th jump it is measured again 50 real steps later, on both
sides without further jumps. The standard error of an effect comes from its batches.

score runs every model over the cycles of each run as training would: forecast first, observe after. A jump is paid back
if its effect is at most log(1 + tolerance). Printed per regime: Brier score, AUROC (at the cycle's end, and later), the
reliability curve, and CPU milliseconds per cycle (a forecast of the jump and of none, and an update).

live scores what a user's run has: the confidence in each full jump, forecast before it is made, against the outcome
that the trainer measures from noisy training losses. The gate's threshold is 0, so every jump is made.

- "look outcomes": the linear model, which learns from the loss of one decide batch before and after every cycle.
- "share so far" forecasts the share of earlier jumps that were paid back, and "exact outcomes" is the linear model that
  learns from the effects. No gate can know either.
"""

import argparse
import copy
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from hybrid_ray.calibration import CalibrationCounts, auroc, brier, reliability
from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, TrainConfig
from hybrid_ray.config.predictors import PredictorConfig
from hybrid_ray.data import BatchSampler, Corpus, heldout_batches, prepare_text
from hybrid_ray.method import HybridTrainer
from hybrid_ray.method.gate.dynamics import DynamicsName, Forecast, make_dynamics
from hybrid_ray.method.gate.features import FEATURE_NAMES
from hybrid_ray.method.phases import Phase
from hybrid_ray.models import GPT2, build_model
from hybrid_ray.optim import build_optimizer, build_schedule

Batch = tuple[Tensor, Tensor]
LATER, LATER_EVERY = 50, 20  # real steps; jumps
VAL_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Regime:
    preset: Any
    steps: int  # nominal
    rate: float
    alpha: float
    explore: float  # share of decisions with a random jump; all others make a full one


REGIMES = {
    "main": Regime(preset="pico", steps=2400, rate=6e-3, alpha=8.0, explore=0.6),
    "short": Regime(preset="nano", steps=600, rate=5e-3, alpha=8.0, explore=0.6),
    "diverging": Regime(preset="pico", steps=1200, rate=1.6e-2, alpha=16.0, explore=0.3),
}


class Recorder:
    """Stands in for the trainer's dynamics model and keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def forecast(self, features: Sequence[float], jump: float) -> Forecast:
        return Forecast(mean=0.0, std=0.01)

    effect = forecast

    def observe(self, features: Sequence[float], jump: float, outcome: float) -> None:
        known = [value if math.isfinite(value) else None for value in features]
        self.rows.append({"features": known, "jump": jump, "outcome": outcome if math.isfinite(outcome) else None})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Side:
    """A copy of model and optimizer that goes on with plain real steps."""

    def __init__(self, model: GPT2, optimizer: torch.optim.Optimizer, train: TrainConfig) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = build_optimizer(self.model, train)
        self.optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        self._clip = train.clip_norm or math.inf

    def step(self, batch: Batch, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.model(*batch).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self.optimizer.step()


@torch.no_grad()
def losses(model: GPT2, batches: Sequence[Batch]) -> list[float]:
    return [float(model(*batch)) for batch in batches]


def effect_of(jumped: GPT2, plain: GPT2, batches: Sequence[Batch]) -> tuple[float, float]:
    """log(loss with the jump / loss without), and its standard error; infinite if the loss is not finite."""
    logs = [
        math.log(one / other) if math.isfinite(one) and math.isfinite(other) else math.inf
        for one, other in zip(losses(jumped, batches), losses(plain, batches), strict=True)
    ]
    if not all(map(math.isfinite, logs)):
        return math.inf, math.inf
    return statistics.mean(logs), statistics.stdev(logs) / len(logs) ** 0.5


def measured_later(twin: Side, main: Side, train: Sequence[Batch], val: Sequence[Batch]) -> float:
    """The effect after `LATER` more real steps on both sides."""
    twin = Side(twin.model, twin.optimizer, TrainConfig())
    rate = main.optimizer.param_groups[0]["lr"]
    for batch in train:
        main.step(batch, rate)
        twin.step(batch, rate)
    return effect_of(main.model, twin.model, val)[0]


def training(
    corpus: Corpus, regime: Regime, seed: int, **hybrid: Any
) -> tuple[GPT2, torch.optim.Optimizer, TrainConfig, HybridTrainer]:
    """Model, optimizer, settings and trainer of a run that makes jumps of random length. ``hybrid``: other settings."""
    train = TrainConfig(
        steps=regime.steps,
        batch_size=16,
        sequence_length=64,
        learning_rate=regime.rate,
        schedule="linear",
        min_lr_ratio=0.0,
        lr_warmup_fraction=0.1,
    )
    settings = {"gate": "always", "explore": regime.explore, **hybrid}
    config = HybridConfig(
        predictor=PredictorConfig(name="slow_momentum", options={"alpha": regime.alpha}),
        trust="off",
        warmup_steps=0,
        full_steps=5,
        prediction_horizon=1,
        correct_steps=0,
        **settings,
    )
    torch.manual_seed(seed)
    model = build_model(
        ModelConfig(preset=regime.preset), vocab_size=corpus.vocab_size, sequence_length=train.sequence_length
    )
    assert isinstance(model, GPT2)
    optimizer = build_optimizer(model, train)
    trainer = HybridTrainer(
        model,
        optimizer,
        config,
        lr_scheduler=build_schedule(optimizer, train),
        total_steps=train.steps,
        clip_norm=train.clip_norm,
        seed=seed,
    )
    return model, optimizer, train, trainer


def collect(corpus: Corpus, name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Train one run; one row per cycle that has an outcome."""
    model, optimizer, train, trainer = training(corpus, REGIMES[name], seed)
    sampler, other = (
        BatchSampler(corpus.train, batch_size=16, sequence_length=64, seed=number) for number in (seed, seed + 1000)
    )
    pick = random.Random(seed)
    heldout = list(heldout_batches(corpus.heldout["val"], batch_size=16, sequence_length=64))[:-1]
    decide = list(heldout_batches(corpus.heldout["decide"], batch_size=16, sequence_length=64))[:-1]
    recorder, twin, row, jumps, batch = Recorder(), None, dict[str, Any](), 0, sampler.next()
    look = [pick.choice(decide)]
    old = losses(model, look)[0]

    def closure() -> Tensor:
        nonlocal batch
        batch = sampler.next()
        return model(*batch)

    for step in range(train.steps):
        assert trainer._cycle is not None
        trainer._cycle.payback.model = recorder
        before, rate = len(recorder.rows), optimizer.param_groups[0]["lr"]
        if trainer.phases.position.phase is Phase.PREDICT:
            twin = Side(model, optimizer, train)
            trainer.step(closure)
            row = {"look": math.log(losses(model, look)[0] / old)}
            continue
        result = trainer.step(closure)
        if twin is not None:
            twin.step(batch, rate)
        if result.event and ("rollback" in result.event or "skip" in result.event):
            twin = None  # the two sides no longer differ by the jump alone
        if len(recorder.rows) == before:
            continue
        found = recorder.rows[-1] | {"regime": name, "seed": seed, "step": step}
        found["looked"] = math.log(losses(model, look)[0] / old)
        if not found["jump"]:
            yield found
        elif twin is not None:
            val = pick.sample(heldout, VAL_BATCHES)
            row["effect"], row["error"] = effect_of(model, twin.model, val)
            jumps += 1
            if jumps % LATER_EVERY == 0:
                extra = [other.next() for _ in range(LATER)]
                row["later"] = measured_later(twin, Side(model, optimizer, train), extra, val)
            yield found | row
        twin, look = None, [pick.choice(decide)]
        old = losses(model, look)[0]


def live(corpus: Corpus, name: str, seed: int) -> CalibrationCounts:
    """Train one run that makes every jump. Returns its confidence in them, and which were paid back within 1 %."""
    forecasting = {"gate": "confidence", "confidence_threshold": 0.0, "explore": 0.0}
    model, _, train, trainer = training(corpus, REGIMES[name], seed, **forecasting)
    sampler = BatchSampler(corpus.train, batch_size=16, sequence_length=64, seed=seed)
    for _ in range(train.steps):
        trainer.step(lambda: model(*sampler.next()))
    return CalibrationCounts(trainer.stats.measures()["calibration"])


def print_live(name: str, counts: CalibrationCounts) -> None:
    """Print how good the forecasts of `live` are, next to the best constant in hindsight: s (1 - s)."""
    share, sums = counts.happened / counts.count, [row[3] for row in counts.rows]
    area = "-" if counts.auroc is None else f"{counts.auroc:.2f}"
    print(
        f"{name}: {counts.count} jumps, mean confidence {sum(sums) / counts.count:.3f}, paid back {share:.3f}; Brier "
        f"score {counts.brier:.3f}, of a constant {share * (1.0 - share):.3f}; AUROC {area}",
        flush=True,
    )


def forecasts(rows: Sequence[Mapping[str, Any]], name: DynamicsName, tolerance: float, label: str) -> Iterator[float]:
    """The confidence in every jump of one run, each forecast before its outcome (``label``) is observed."""
    model = make_dynamics(name, seed=0)
    for row in rows:
        features = [math.nan if value is None else value for value in row["features"]]
        if row["jump"]:
            below = model.forecast(features, 0.0).mean < 0.0  # the trend
            found = model.effect(features, row["jump"]) if below else model.forecast(features, row["jump"])
            yield replace(found, noise=0.0).paid_back(tolerance)  # an effect has almost none
        outcome = row.get(label, 0.0)  # without a jump there is no effect
        model.observe(features, row["jump"], math.nan if outcome is None else outcome)


def simple_score(row: Mapping[str, Any], name: str, tolerance: float) -> float:
    """A score in [0, 1] that needs no model. What is not known counts as 0.5."""
    value = {key: 0.5 if found is None else found for key, found in zip(FEATURE_NAMES, row["features"], strict=True)}
    match name:
        case "old confidence":
            return min(1.0, max(0.0, value["agreement"]))
        case "agreement alone":
            return min(1.0, max(0.0, value["cosine_16"]))
        case "immediate look":
            return min(1.0, max(0.0, 1.0 - math.expm1(min(1.0, row["look"])) / tolerance))
        case "loss trend":
            return float(value["loss_15_50"] <= 0.0)
    return min(1.0, max(0.0, 1.0 - value["loss_noise"]))  # loss-only: how stable the loss is


SIMPLE = ("old confidence", "agreement alone", "immediate look", "loss trend", "loss only")


def share_so_far(happened: Sequence[bool]) -> list[float]:
    """The share of earlier jumps that were paid back: what a constant can reach."""
    return [(sum(happened[:count]) + 1.0) / (count + 2.0) for count in range(len(happened))]


def score(rows: Sequence[Mapping[str, Any]], tolerance: float) -> None:
    """Print the table of one regime."""
    runs: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        runs[row["seed"]].append(row)
    jumps = [row for run in runs.values() for row in run if row["jump"]]
    happened = [row["effect"] <= math.log1p(tolerance) for row in jumps]
    effects = [row["effect"] for row in jumps]
    outcomes = [1.0 if row["outcome"] is None else row["outcome"] for row in jumps]
    print(
        f"{len(runs)} runs, {len(rows)} cycles, {len(jumps)} jumps; effect {statistics.mean(effects):+.3%} "
        f"+- {statistics.stdev(effects):.3%} (standard error of one {statistics.mean(r['error'] for r in jumps):.3%}); "
        f"noise of an outcome {statistics.stdev(o - e for o, e in zip(outcomes, effects, strict=True)):.2%}; "
        f"rank correlation outcome - effect {rank_correlation(outcomes, effects):+.2f}, "
        f"look - effect {rank_correlation([row['look'] for row in jumps], effects):+.2f}"
    )
    late = [row for row in jumps if "later" in row]
    if len(late) > 2:
        at, later = ([row[key] for row in late] for key in ("effect", "later"))
        print(
            f"50 real steps later ({len(late)} jumps): effect {statistics.mean(later):+.3%} +- "
            f"{statistics.stdev(later):.3%}, at the cycle's end {statistics.mean(at):+.3%}; rank correlation "
            f"{rank_correlation(at, later):+.2f}"
        )
    print(f"paid back within {tolerance:.2%}: {sum(happened) / len(happened):.1%} of jumps")
    print(f"{'':22} {'Brier':>7} {'AUROC':>6} {'later':>6} {'ms':>6}  reliability: forecast -> share (count)")
    so_far = [value for run in runs.values() for value in share_so_far(_paid_back(run, tolerance))]
    print_row("share so far", so_far, jumps, happened, tolerance)
    for name in SIMPLE:
        print_row(name, [simple_score(row, name, tolerance) for row in jumps], jumps, happened, tolerance)
    models: list[tuple[str, DynamicsName, str]] = [(name, name, "outcome") for name in get_args(DynamicsName)]
    models += [("look outcomes", "linear", "looked")] if all("looked" in row for row in rows) else []
    models += [("exact outcomes", "linear", "effect")]
    for shown, name, label in models:
        started = time.process_time()
        values = [value for run in runs.values() for value in forecasts(run, name, tolerance, label)]
        milliseconds = 1e3 * (time.process_time() - started) / len(rows)
        print_row(shown, values, jumps, happened, tolerance, milliseconds)


def print_row(
    name: str,
    values: Sequence[float],
    jumps: Sequence[Mapping[str, Any]],
    happened: Sequence[bool],
    tolerance: float,
    milliseconds: float = math.nan,
) -> None:
    late = [
        (value, row["later"] <= math.log1p(tolerance))
        for value, row in zip(values, jumps, strict=True)
        if "later" in row
    ]
    areas = [auroc(values, happened), auroc(*zip(*late, strict=True)) if late else None]
    shown = " ".join("     -" if area is None else f"{area:6.2f}" for area in areas)
    curve = "  ".join(
        f"{bin_.probability:.2f} -> {bin_.share:.2f} ({bin_.count})"
        for bin_ in reliability(values, happened, bins=5)
        if bin_.count
    )
    cost = "     -" if math.isnan(milliseconds) else f"{milliseconds:6.2f}"
    print(f"{name:22} {brier(values, happened):7.4f} {shown} {cost}  {curve}", flush=True)


def _paid_back(run: Sequence[Mapping[str, Any]], tolerance: float) -> list[bool]:
    return [row["effect"] <= math.log1p(tolerance) for row in run if row["jump"]]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's."""

    def ranks(values: Sequence[float]) -> list[float]:
        order = sorted(range(len(values)), key=lambda place: values[place])
        return [float(rank) for _, rank in sorted(zip(order, range(len(order)), strict=True))]

    return statistics.correlation(ranks(first), ranks(second))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collecting = commands.add_parser("collect")
    collecting.add_argument("--regime", choices=REGIMES, default="main")
    collecting.add_argument("--seed", type=int, default=0)
    collecting.add_argument("--out", type=Path, required=True, help="appended to")
    scoring = commands.add_parser("score")
    scoring.add_argument("file", type=Path)
    scoring.add_argument("--tolerance", type=float, nargs="+", default=[0.01, 0.002])
    living = commands.add_parser("live")
    living.add_argument("--regime", choices=REGIMES, nargs="+", default=list(REGIMES))
    living.add_argument("--seeds", type=int, default=1, help="runs of each regime, from seed 1; default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "collect":
        corpus = prepare_text(DataConfig())
        with arguments.out.open("a") as file:
            for row in collect(corpus, arguments.regime, arguments.seed):
                print(json.dumps(row), file=file, flush=True)
        return
    if arguments.command == "live":
        corpus = prepare_text(DataConfig())
        for name in arguments.regime:
            for seed in range(1, arguments.seeds + 1):
                print_live(f"{name}, seed {seed}", live(corpus, name, seed))
        return
    rows = [json.loads(line) for line in arguments.file.read_text().splitlines()]
    for regime in sorted({row["regime"] for row in rows}):
        for tolerance in arguments.tolerance:
            print(f"\n{regime}: ", end="")
            score([row for row in rows if row["regime"] == regime], tolerance)


if __name__ == "__main__":
    main()
