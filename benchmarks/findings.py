"""Train the runs that docs/findings.md reports, one after another, and store one JSON line for each.

    nice -n 15 python benchmarks/findings.py --out RESULTS.jsonl [--only TEXT] [--processes N] [--list]

Every run uses the training loop of hybrid_ray (`hybrid_ray.training`) on one thread, without Ray. `queue` lists the
runs, the most informative first. Runs that are already in the file are skipped, so the command can be stopped and
started again. A stage that needs a learning rate takes the best of its tuning runs (mean loss on the val split over the
tuning seeds), so the queue is computed again after every run.

Lengths are in *real* steps: a hybrid run of 4,000 real steps with one predicted step for each has 8,000 nominal steps.
Its learning rate decays linearly to zero over its nominal steps, as a plain run's does.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.run_result import RunResult
from hybrid_ray.training.loop import train

WARMUP = 50  # real steps
TUNING_SEEDS = (101, 102)
SEEDS = (1, 2, 3, 4, 5, 6)
PRESETS = {32: "pico", 64: "pico64", 128: "pico128", 384: "mini"}

BETA3 = 0.996  # decay of the slow average at the end of a run
LONG_BETA3 = 0.9984  # of a longer average, in the arms named so
STABILITY_STEPS = 2000  # a run of 4,000 takes over ten minutes

PLAIN: Mapping[str, Any] = {"predictor": "none"}
JUMPS: Mapping[str, Any] = {
    "warmup_steps": 0, "full_steps": 5, "prediction_horizon": 5, "correct_steps": 0, "confidence_threshold": 0.0,
    "gate": "always", "trust": "off",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """One run: its names in the result file, and everything that defines it."""

    arm: str
    width: int
    steps: int  # real
    seed: int
    rate: float
    train: Mapping[str, Any] = field(default_factory=dict)
    hybrid: Mapping[str, Any] = field(default_factory=lambda: PLAIN)
    batch: int = 16

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    def run(self) -> RunConfig:
        hybrid = HybridConfig(**self.hybrid)
        predicted = 0 if hybrid.predictor.name == "none" else self._predicted(hybrid)
        nominal = self.steps + predicted
        config = TrainConfig(
            steps=nominal, batch_size=self.batch, learning_rate=self.rate, min_lr_ratio=0.0,
            evaluations=1, sample_tokens=0, calibration_steps=5, device="cpu",
            **{"schedule": "linear", "lr_warmup_fraction": WARMUP / self.steps, **self.train},
        )  # fmt: skip
        return RunConfig(
            arm="baseline" if hybrid.predictor.name == "none" else "hybrid",
            seed=self.seed,
            model=ModelConfig(preset=PRESETS[self.width]),
            data=DataConfig(),
            train=config,
            hybrid=hybrid,
        )

    def _predicted(self, hybrid: HybridConfig) -> int:
        """Predicted steps of the run, which predicts after every ``full_steps`` real steps of its allowed part."""
        share = hybrid.predicts_until - hybrid.predicts_from
        a, b = hybrid.full_steps, hybrid.prediction_horizon
        # In `share` of the nominal steps, b of a + b steps are predicted; all others are real.
        ratio = share * b / (a + b)
        return round(self.steps * ratio / (1.0 - ratio))


def adamw(width: int, steps: int, seed: int, rate: float, **changes: Any) -> Spec:
    return Spec(arm="adamw", width=width, steps=steps, seed=seed, rate=rate, **changes)


def adamw_long_warmup(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Plain training with a tenth of the run as warmup: does it allow a higher rate?"""
    return Spec(
        arm="adamw_long_warmup", width=width, steps=steps, seed=seed, rate=rate, train={"lr_warmup_fraction": 0.1}
    )


def ademamix(width: int, steps: int, seed: int, rate: float) -> Spec:
    options = {"optimizer": "ademamix", "alpha": 8.0, "beta3": BETA3}
    return Spec(arm="ademamix", width=width, steps=steps, seed=seed, rate=rate, train=options)


def slow(width: int, steps: int, seed: int, rate: float) -> Spec:
    options = {**JUMPS, "predictor": {"name": "slow_momentum", "alpha": 8.0, "beta3": BETA3}}
    return Spec(arm="slow_momentum", width=width, steps=steps, seed=seed, rate=rate, hybrid=options)


def average(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Average displacement: time constant a sixteenth of the run, gain 2.5, predictions from 16 to 76 % of it."""
    options = {
        **JUMPS, "predictor": {"name": "ema_nesterov", "time_constant": steps / 16, "gain": 2.5},
        "first_fraction": 0.16, "off_fraction": 0.24,
    }  # fmt: skip
    return Spec(arm="ema_nesterov", width=width, steps=steps, seed=seed, rate=rate, hybrid=options)


def placebo(width: int, steps: int, seed: int, rate: float) -> Spec:
    """The phases of slow momentum; predicted steps do nothing."""
    options = {**JUMPS, "predictor": "zero", "off_fraction": 0.0}
    return Spec(arm="placebo", width=width, steps=steps, seed=seed, rate=rate, hybrid=options)


def slow_trusting(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Slow momentum with its default rule: no jump while the training loss rises."""
    spec = slow(width, steps, seed, rate)
    return replace(spec, arm="slow_momentum_trust", hybrid={**spec.hybrid, "trust": "loss_trend"})


def _with(spec: Spec, **options: Any) -> dict[str, Any]:
    """The spec's hybrid settings with other options of its predictor."""
    return {**spec.hybrid, "predictor": {**spec.hybrid["predictor"], **options}}


def slow_cautious(kind: str, alpha: float, width: int, steps: int, seed: int, rate: float) -> Spec:
    """Slow momentum that moves a coordinate less if its average is uncertain."""
    spec = slow(width, steps, seed, rate)
    return replace(spec, arm=f"slow_{kind}_{alpha:g}", hybrid=_with(spec, caution=kind, alpha=alpha))


def slow_clipped(longest: float, width: int, steps: int, seed: int, rate: float) -> Spec:
    """Slow momentum whose jumps are at most ``longest`` times as long as the real steps before them."""
    spec = slow(width, steps, seed, rate)
    hybrid = _with(spec, name="clipped_slow_momentum:ClippedSlowMomentum", longest=longest)
    return replace(spec, arm=f"slow_clipped_{longest:g}", hybrid={**hybrid, "off_fraction": 0.0})


def slow_alpha(alpha: float, width: int, steps: int, seed: int, rate: float) -> Spec:
    """Slow momentum with another weight of the slow average."""
    spec = slow(width, steps, seed, rate)
    return replace(spec, arm=f"slow_alpha_{alpha:g}", hybrid=_with(spec, alpha=alpha))


def slow_long_average(width: int, steps: int, seed: int, rate: float) -> Spec:
    spec = slow(width, steps, seed, rate)
    return replace(spec, arm="slow_momentum_long_average", hybrid=_with(spec, beta3=LONG_BETA3))


def ademamix_long_average(width: int, steps: int, seed: int, rate: float) -> Spec:
    spec = ademamix(width, steps, seed, rate)
    return replace(spec, arm="ademamix_long_average", train={**spec.train, "beta3": LONG_BETA3})


def orthogonal_jumps(width: int, steps: int, seed: int, rate: float) -> Spec:
    """AdamW, and jumps in which the slow average of a hidden matrix is made orthogonal, as Muon does in each step."""
    spec = slow(width, steps, seed, rate)
    return replace(spec, arm="orthogonal_jumps", hybrid=_with(spec, matrices="orthogonal"))


def muon(width: int, steps: int, seed: int, rate: float) -> Spec:
    return Spec(arm="muon", width=width, steps=steps, seed=seed, rate=rate, train={"optimizer": "muon"})


def muon_ademamix(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Muon with AdEMAMix's slow average mixed into what it makes orthogonal: the peer of jumps on Muon."""
    options = {"optimizer": "muon_ademamix", "alpha": 2.0, "beta3": BETA3}
    return Spec(arm="muon_ademamix", width=width, steps=steps, seed=seed, rate=rate, train=options)


def muon_slow(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Jumps of slow momentum on top of Muon."""
    return replace(slow(width, steps, seed, rate), arm="muon_slow_momentum", train={"optimizer": "muon"})


def muon_slow_each_step(width: int, steps: int, seed: int, rate: float) -> Spec:
    """A jump after every real step, so none is skipped (docs/method.md, section 3)."""
    spec = muon_slow(width, steps, seed, rate)
    return replace(spec, arm="muon_slow_each_step", hybrid={**spec.hybrid, "full_steps": 1, "prediction_horizon": 1})


def schedule_free(width: int, steps: int, seed: int, rate: float) -> Spec:
    """Warmup, then a constant rate."""
    options = {"optimizer": "schedule_free", "schedule": "constant"}
    return Spec(arm="schedule_free", width=width, steps=steps, seed=seed, rate=rate, train=options)


def ademamix_slow(width: int, steps: int, seed: int, rate: float) -> Spec:
    """AdEMAMix, with jumps along a slower average that has half the weight."""
    spec = slow(width, steps, seed, rate)
    return replace(
        spec,
        arm="ademamix_slow_momentum",
        train=ademamix(width, steps, seed, rate).train,
        hybrid=_with(spec, alpha=4.0, beta3=1.0 - (1.0 - BETA3) / 4),
    )


ARMS = {
    "adamw": adamw,
    "adamw_long_warmup": adamw_long_warmup,
    "slow_momentum": slow,
    "ademamix": ademamix,
    "ema_nesterov": average,
    "placebo": placebo,
    "slow_momentum_trust": slow_trusting,
    "muon": muon,
    "muon_ademamix": muon_ademamix,
    "orthogonal_jumps": orthogonal_jumps,
    "muon_slow_momentum": muon_slow,
    "muon_slow_each_step": muon_slow_each_step,
    "schedule_free": schedule_free,
    "ademamix_slow_momentum": ademamix_slow,
    "slow_momentum_long_average": slow_long_average,
    "ademamix_long_average": ademamix_long_average,
}
RATES: Mapping[tuple[str, int], Sequence[float]] = {
    ("adamw", 32): (4e-3, 6e-3, 8e-3, 1.1e-2, 1.6e-2),
    ("adamw_long_warmup", 32): (1.1e-2, 1.6e-2, 2.2e-2),
    ("slow_momentum", 32): (2e-3, 3e-3, 4e-3, 6e-3),
    ("ademamix", 32): (2e-3, 3e-3, 4e-3, 6e-3),
    ("ema_nesterov", 32): (4e-3, 6e-3, 8e-3),
    ("adamw", 64): (4e-3, 6e-3, 8e-3, 1.1e-2),
    ("slow_momentum", 64): (1.5e-3, 2e-3, 3e-3),
    ("ademamix", 64): (1.5e-3, 2e-3, 3e-3),
    ("ema_nesterov", 64): (3e-3, 4e-3, 6e-3),  # 4e-3 was the best of the first two
    ("muon", 32): (4e-3, 8e-3, 1.6e-2, 3.2e-2),
    ("muon_ademamix", 32): (8e-3, 1.6e-2, 2.2e-2),
    ("muon_slow_momentum", 32): (2e-3, 4e-3, 8e-3, 1.6e-2),
    ("muon_slow_each_step", 32): (4e-3, 8e-3, 1.6e-2),
    ("orthogonal_jumps", 32): (4e-3, 6e-3, 8e-3),
    ("orthogonal_jumps", 64): (1.5e-3, 2e-3, 3e-3),
    ("muon", 64): (2e-3, 4e-3, 8e-3),
    ("muon_slow_momentum", 64): (1e-3, 2e-3, 4e-3),
    ("schedule_free", 32): (4e-3, 8e-3, 1.6e-2),
    ("ademamix_slow_momentum", 32): (2e-3, 3e-3, 4e-3),
    ("slow_momentum_long_average", 32): (1.5e-3, 2e-3, 3e-3, 4e-3),
    ("ademamix_long_average", 32): (1.5e-3, 2e-3, 3e-3, 4e-3),
}
# Where other rates are best: by width, real steps and batch size.
RATES_THERE: Mapping[tuple[int, int, int], Mapping[str, Sequence[float]]] = {
    (64, 8000, 16): {
        "adamw": (3e-3, 4e-3, 6e-3),
        "slow_momentum": (1.5e-3, 2e-3, 3e-3),
        "ademamix": (1.1e-3, 1.5e-3, 2e-3),
    },
    (32, 1000, 16): {
        "adamw": (1.1e-2, 1.6e-2, 2.2e-2, 3.2e-2),
        "slow_momentum": (4e-3, 6e-3, 8e-3),
        "ademamix": (4e-3, 6e-3, 8e-3, 1.1e-2),
    },
    (32, 4000, 4): {
        "adamw": (4e-3, 6e-3, 8e-3),
        "slow_momentum": (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3),
        "ademamix": (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3, 6e-3),
    },
    (32, 1000, 64): {
        "adamw": (1.1e-2, 1.6e-2, 2.2e-2),
        "slow_momentum": (4e-3, 6e-3, 8e-3, 1.1e-2, 1.6e-2),
        "ademamix": (4e-3, 6e-3, 8e-3, 1.1e-2, 1.6e-2),
    },
    (32, 4000, 64): {
        "adamw": (8e-3, 1.1e-2, 1.6e-2),
        "slow_momentum": (4e-3, 6e-3, 8e-3),
        "ademamix": (4e-3, 6e-3, 8e-3),
    },
}


def rates(arm: str, width: int, steps: int, batch: int) -> Sequence[float]:
    """The learning rates that are tried for an arm."""
    return RATES_THERE.get((width, steps, batch), {}).get(arm) or RATES[arm, width]


class Results:
    """The finished runs of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [
            json.loads(line) for line in lines if line.endswith("}")
        ]  # a run whose line is incomplete is trained again
        self._keys = {json.dumps(row["spec"], sort_keys=True) for row in self.rows}

    def has(self, spec: Spec) -> bool:
        return spec.key in self._keys

    def add(self, spec: Spec, result: RunResult) -> None:
        row = {"spec": asdict(spec), **_kept(result)}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._keys.add(spec.key)

    def best_rate(self, arm: str, width: int, steps: int, batch: int = 16) -> float | None:
        """The learning rate whose tuning runs have the lowest mean loss. None while a tuning run is missing."""
        losses: dict[float, list[float]] = defaultdict(list)
        for row in self.rows:
            spec = row["spec"]
            here = (spec["arm"], spec["width"], spec["steps"], spec["batch"]) == (arm, width, steps, batch)
            if here and spec["seed"] in TUNING_SEEDS:
                losses[spec["rate"]].append(row["val"] if row["status"] == "finished" else float("inf"))
        wanted = rates(arm, width, steps, batch)
        if any(len(losses[rate]) < len(TUNING_SEEDS) for rate in wanted):
            return None
        return min(wanted, key=lambda rate: fmean(losses[rate]))


def _kept(result: RunResult) -> dict[str, Any]:
    statistics = result.statistics
    names = ("decisions", "jumps", "overshoots", "events", "mean_cosine", "mean_alpha", "mean_error")
    return {
        "status": result.status,
        "error": result.error,
        "val": result.heldout["val"].loss if "val" in result.heldout else None,
        "test": result.heldout["test"].loss if "test" in result.heldout else None,
        "steps": result.steps,
        "real_steps": result.real_steps,
        "train_seconds": result.train_seconds,
        "step_seconds": result.step_seconds,
        "part_seconds": dict(result.part_seconds),
        "phase_seconds": dict(result.phase_seconds),
        "statistics": {name: statistics.get(name) for name in names},
        "corpus": result.fingerprint["corpus"],
        "hardware": result.fingerprint["hardware"],
        "finished_at": time.time(),
    }


def queue(results: Results) -> Iterator[Spec]:
    """All runs, the most informative first. A stage whose rates are not tuned yet has only its tuning runs."""
    # Do these repeat the earlier trial runs?
    yield adamw(32, 4000, 1, 6e-3)
    yield slow(32, 4000, 1, 4e-3)
    yield ademamix(32, 4000, 1, 4e-3)
    yield from stage(results, 32, 4000, ("adamw", "slow_momentum", "ademamix"))
    yield from frontier(results, "adamw", 32, 4000, (3200, 4800, 5600, 6400), SEEDS)
    yield from tuning("adamw_long_warmup", 32, 4000)
    yield from stage(results, 32, 4000, ("placebo",))
    yield from frontier(results, "ademamix", 32, 4000, (3200, 4800, 5600), SEEDS[:3])
    yield from stage(results, 32, 4000, ("ema_nesterov",))
    for kind, alpha in (("sign", 12.0), ("shrink", 12.0), ("shrink", 8.0), ("sign", 8.0)):
        yield slow_cautious(kind, alpha, 32, 4000, TUNING_SEEDS[0], 4e-3)
    yield from stage(results, 64, 4000, ("adamw", "slow_momentum", "ademamix"))
    yield from frontier(results, "adamw", 64, 4000, (4800, 5600, 6400), SEEDS[:3])
    yield from stage(results, 64, 4000, ("placebo", "ema_nesterov"))
    yield from stage(results, 32, 8000, ("adamw", "slow_momentum", "ademamix"))
    yield from stage(
        results, 32, 4000, ("muon", "muon_ademamix", "orthogonal_jumps", "muon_slow_momentum", "muon_slow_each_step")
    )
    yield from frontier(results, "muon", 32, 4000, (4800, 5600), SEEDS[:3])
    yield from stage(results, 64, 4000, ("muon", "orthogonal_jumps", "muon_slow_momentum"))
    yield from stage(results, 32, 2000, ("muon", "muon_ademamix", "orthogonal_jumps", "ademamix", "adamw"))
    yield from frontier(results, "muon", 32, 2000, (1600, 2400), SEEDS)
    yield from frontier(results, "adamw", 32, 2000, (2400, 2800, 3200), SEEDS)
    yield from stage(results, 32, 2000, ("slow_momentum", "muon_slow_momentum", "placebo", "ema_nesterov"))
    yield from stage(results, 32, 8000, ("placebo", "ema_nesterov"))
    for arm in ("slow_momentum_long_average", "ademamix_long_average"):
        yield from tuning(arm, 32, 8000)
    yield from stage(results, 64, 8000, ("adamw", "slow_momentum", "ademamix", "placebo", "ema_nesterov"))
    yield from frontier(results, "adamw", 64, 8000, (11200,), SEEDS[:3])
    for steps, batch in ((1000, 16), (4000, 4), (1000, 64), (4000, 64)):
        yield from stage(results, 32, steps, ("adamw", "slow_momentum", "ademamix"), batch)
    # The cost of the trust rule in healthy runs, and its benefit at twice the best rate.
    if (rate := results.best_rate("slow_momentum", 32, 4000)) is not None:
        for seed in SEEDS[:3]:
            yield slow_trusting(32, 4000, seed, rate)
            yield from (arm(64, 4000, seed, 6e-3) for arm in (slow, slow_trusting))
    yield from stage(results, 32, 4000, ("ademamix_slow_momentum", "schedule_free"))
    for rate in (2e-3, 4e-3):
        yield from stability(128, STABILITY_STEPS, 1, rate)


def stability(width: int, steps: int, seed: int, rate: float) -> Iterator[Spec]:
    """What keeps slow momentum from diverging at AdamW's own rate, where its default gain is too large?"""
    yield adamw(width, steps, seed, rate)
    yield slow(width, steps, seed, rate)
    yield slow_trusting(width, steps, seed, rate)
    yield slow(width, steps, seed, rate / 2)
    yield slow_alpha(4.0, width, steps, seed, rate)
    yield from (slow_clipped(longest, width, steps, seed, rate) for longest in (1.0, 2.0))


def stage(results: Results, width: int, steps: int, arms: Sequence[str], batch: int = 16) -> Iterator[Spec]:
    """Tune each arm on the tuning seeds, then train it at its best rate, seed by seed. Placebo uses AdamW's rate."""
    for arm in arms:
        if arm != "placebo":
            yield from tuning(arm, width, steps, batch)
    for seed in SEEDS:
        for arm in arms:
            rate = results.best_rate("adamw" if arm == "placebo" else arm, width, steps, batch)
            if rate is not None:
                yield replace(ARMS[arm](width, steps, seed, rate), batch=batch)


def tuning(arm: str, width: int, steps: int, batch: int = 16) -> Iterator[Spec]:
    for rate in rates(arm, width, steps, batch):
        yield from (replace(ARMS[arm](width, steps, seed, rate), batch=batch) for seed in TUNING_SEEDS)


def frontier(
    results: Results, arm: str, width: int, steps: int, lengths: Sequence[int], seeds: Sequence[int]
) -> Iterator[Spec]:
    """Plain training with other numbers of steps, at the rate tuned for ``steps``."""
    rate = results.best_rate(arm, width, steps)
    if rate is not None:
        yield from (ARMS[arm](width, length, seed, rate) for seed in seeds for length in lengths)


def next_run(results: Results, only: str, under_way: Sequence[Spec] = ()) -> Spec | None:
    missing = (spec for spec in queue(results) if only in spec.key and not results.has(spec))
    return next((spec for spec in missing if spec not in under_way), None)


def work(results: Results, only: str, processes: int) -> None:
    """Train all missing runs, several at a time, each in a process with one thread."""
    under_way: dict[Future[RunResult], tuple[Spec, float]] = {}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        while True:
            while len(under_way) < processes:
                spec = next_run(results, only, [spec for spec, _ in under_way.values()])
                if spec is None:
                    break
                under_way[pool.submit(train, spec.run())] = spec, time.time()
            if not under_way:
                return
            time.sleep(0.5)
            for pending in [pending for pending in under_way if pending.done()]:
                spec, started = under_way.pop(pending)
                try:
                    result = pending.result()
                except BrokenProcessPool:
                    sys.exit(f"the process of {spec.arm} or of another run died; finished runs are kept: start again")
                if result.status == "stopped":  # by a signal; the next call trains this run again
                    return
                results.add(spec, result)
                row = results.rows[-1]
                print(
                    f"{spec.arm} width {spec.width} steps {spec.steps} rate {spec.rate:g} seed {spec.seed}: "
                    f"{row['val']} / {row['test']} in {time.time() - started:.0f} s, {row['statistics']['events']}",
                    flush=True,
                )


def _stop() -> None:
    for process in active_children():
        process.kill()
    sys.exit("stopped; the runs under way are lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file with one JSON line per run")
    parser.add_argument("--only", default="", help="only runs whose settings, as JSON, contain this text")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time; at most one per core")
    parser.add_argument("--list", action="store_true", help="count the missing runs known so far; train none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results = Results(arguments.out)
    if arguments.list:
        missing = [spec for spec in queue(results) if arguments.only in spec.key and not results.has(spec)]
        print(f"{len(results.rows)} done, {len(missing)} known to be missing")
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: _stop())
    work(results, arguments.only, arguments.processes)


if __name__ == "__main__":
    main()
