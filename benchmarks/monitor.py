"""What each rule of the divergence monitor is worth: real runs of pico in trouble, with every rule left out in turn.

    nice python benchmarks/monitor.py --out RESULTS.jsonl [--seeds 3] [--only TEXT] [--table]
    python benchmarks/monitor.py --recorded

Every run predicts (slow momentum, alpha 8, unless its trouble is another predictor) with the rule of the loss's trend
(``trust: loss_trend``) and all rules of the monitor; the variants leave out one rule, one kind of recovery, all of
them, or the trend. Runs of one seed see the same batches. A variant whose rule raised no alarm in the run with all
rules, or whose recovery was not advised in it, would be the same run, so it is not trained. Each run appends one JSON
line. Runs that are in the file are skipped, so the command can be stopped and started again.

``--table`` trains nothing and prints two tables in Markdown: which rule fires first if nothing is done about it, and
the change of the final validation loss without each rule, in percent, with the change of the real steps in brackets.
All runs have the same nominal steps, so one that predicts less takes more real steps and ends lower for that alone.
The percentages are therefore of the loss divided by that of AdamW after the same number of real steps.

``--recorded`` counts false alarms in the recorded series of 10,000 healthy steps
(``tests/golden/training_series.npz``).
"""

import argparse
import math
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from monitor_results import RECOVERY, TREND, Results, shown

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, TrainConfig
from hybrid_ray.data import BatchSampler, Corpus, heldout_batches, prepare_text
from hybrid_ray.errors import Diverged
from hybrid_ray.method import HybridTrainer
from hybrid_ray.method.guard.divergence import Assessment, DivergenceMonitor, Level, Recovery
from hybrid_ray.method.guard.signals import Alarm
from hybrid_ray.models import build_model
from hybrid_ray.optim import build_optimizer, build_schedule

STEPS, BATCH, LENGTH, VAL_BATCHES = 250, 16, 64, 16  # nominal steps, half of them predicted
SERIES = Path(__file__).parents[1] / "tests" / "golden" / "training_series.npz"
HEALTHY = Assessment(level=Level.NORMAL, reasons=(), recovery=Recovery.CONTINUE)

# Rules, each with the level that its alarm falls back to if the rule is left out; None: there is no alarm.
RULES: dict[str, Level | None] = {
    "loss: caution": None,
    "loss: 5 of the last 6": Level.CAUTION,
    "loss: right after a prediction": Level.CAUTION,
    "loss: given back": None,
    "loss: far above": Level.WARNING,
    "gradient: caution": None,
    "gradient: 5 of the last 6": Level.CAUTION,
    "gradient: warning": Level.CAUTION,
    "gradient: critical": Level.WARNING,
    "vanishing: warning": None,
    "prediction: caution": None,
}
RECOVERIES = tuple(str(recovery) for recovery in Recovery if recovery is not Recovery.CONTINUE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    rate: float = 1.6e-2
    alpha: float = 8.0  # of slow momentum
    gain: float | None = None  # of an average displacement, instead of slow momentum
    plain: int | None = None  # steps of a run without predictions, instead of `STEPS`
    bad: range = range(0)  # batches that are bad
    kind: Literal["random tokens", "loss", "gradient"] = "random tokens"  # what is 1,000 times too large in them
    clip: float | None = 1.0


TROUBLES = {
    "healthy": Trouble(),
    "healthy, average displacement": Trouble(gain=2.5),
    "jumps 4 times too long": Trouble(alpha=32.0),
    "average displacement, gain 10": Trouble(gain=10.0),
    "30 random batches": Trouble(bad=range(60, 90)),
    "rate 0.1": Trouble(rate=0.1),
    "rate 1": Trouble(rate=1.0),
    "1 random batch": Trouble(bad=range(60, 61)),
    "1 loss x 1,000": Trouble(bad=range(60, 61), kind="loss", clip=None),
    "1 gradient x 1,000": Trouble(bad=range(60, 61), kind="gradient", clip=None),
}

PLAIN = {f"AdamW, {steps} steps": Trouble(plain=steps) for steps in (75, 125, 175, 225)}


class Watched(DivergenceMonitor):
    """A monitor that counts alarms by rule and advised recoveries.

    Args:
        off: what to leave out: rules, recoveries, or `RECOVERY` for all of them.
    """

    def __init__(self, off: Iterable[str] = ()) -> None:
        super().__init__()
        self.off = frozenset(off)
        self.first: dict[str, int] = {}  # real step of a rule's first alarm
        self.count: Counter[str] = Counter()
        self.advised: Counter[str] = Counter()
        for signal, name in ((self.loss, "loss"), (self.gradient, "gradient")):
            if f"{name}: 5 of the last 6" in self.off:
                signal.high = deque(maxlen=4)

    def _assess(self, alarms: Iterable[Alarm], after_prediction: bool) -> Assessment:
        kept = [left for alarm in alarms for left in self._kept(alarm)]
        if not kept or RECOVERY in self.off:
            return HEALTHY
        return self._advised(super()._assess(kept, after_prediction))

    def observe_nonfinite(
        self, what: Literal["loss", "gradient", "update"], *, after_prediction: bool = False
    ) -> Assessment:
        self._note("not finite")
        if RECOVERY in self.off:
            return HEALTHY
        return self._advised(super().observe_nonfinite(what, after_prediction=after_prediction))

    def _kept(self, alarm: Alarm) -> Iterator[Alarm]:
        rule = rule_of(alarm)
        self._note(rule)
        level = RULES[rule] if rule in self.off else alarm.level
        if level is not None:
            yield replace(alarm, level=level)

    def _note(self, rule: str) -> None:
        self.first.setdefault(rule, self.clock)
        self.count[rule] += 1

    def _advised(self, assessment: Assessment) -> Assessment:
        self.advised[str(assessment.recovery)] += 1
        return replace(assessment, recovery=Recovery.CONTINUE) if assessment.recovery in self.off else assessment


def rule_of(alarm: Alarm) -> str:
    for words in ("5 of the last 6", "right after a prediction", "given back", "far above"):
        if words in alarm.reason:
            return f"{alarm.cause}: {words}"
    return f"{alarm.cause}: {alarm.level}"


def training(corpus: Corpus, trouble: Trouble, off: frozenset[str], seed: int) -> HybridTrainer:
    """Model, optimizer and trainer of a run, with a monitor that leaves out ``off``."""
    steps = trouble.plain or STEPS
    train = TrainConfig(
        steps=steps, batch_size=BATCH, sequence_length=LENGTH, learning_rate=trouble.rate, schedule="linear",
        min_lr_ratio=0.0, lr_warmup_fraction=0.1,
    )  # fmt: skip
    slow: Any = {"name": "slow_momentum", "alpha": trouble.alpha, "beta3": 0.996}
    method: dict[str, Any] = {
        "predictor": slow if trouble.gain is None else {"name": "ema_nesterov", "gain": trouble.gain},
        "warmup_steps": 0, "full_steps": 5, "prediction_horizon": 5, "correct_steps": 0, "gate": "always",
        "trust": "off" if TREND in off else "loss_trend",
    }  # fmt: skip
    config = HybridConfig(predictor="none") if trouble.plain else HybridConfig(**method)
    torch.manual_seed(seed)
    model = build_model(ModelConfig(preset="pico"), vocab_size=corpus.vocab_size, sequence_length=LENGTH)
    optimizer = build_optimizer(model, train)
    trainer = HybridTrainer(
        model, optimizer, config, lr_scheduler=build_schedule(optimizer, train), total_steps=steps,
        clip_norm=trouble.clip, seed=seed,
    )  # fmt: skip
    trainer.health.monitor = Watched(off)
    return trainer


def trained(corpus: Corpus, trouble: Trouble, off: frozenset[str], seed: int) -> dict[str, Any]:
    """Train one run. Returns its result; ``val`` is None if the loss is not finite."""
    trainer = training(corpus, trouble, off, seed)
    model, monitor = trainer.model, trainer.health.monitor
    assert isinstance(monitor, Watched)
    sampler = BatchSampler(corpus.train, batch_size=BATCH, sequence_length=LENGTH, seed=seed)
    batches, refused, choose, status = 0, 0, trainer._gate.choose, "finished"

    def counted(*arguments: Any, rising: bool, **others: Any) -> float:
        nonlocal refused
        refused += rising
        return choose(*arguments, rising=rising, **others)

    trainer._gate.choose = counted  # type: ignore[method-assign]

    def closure() -> torch.Tensor:
        nonlocal batches
        batches += 1
        x, y = sampler.next()
        if batches not in trouble.bad:
            return model(x, y)
        if trouble.kind == "random tokens":
            return model(*(torch.randint_like(x, corpus.vocab_size) for _ in range(2)))
        loss = 1000.0 * model(x, y)
        return loss if trouble.kind == "loss" else loss - 0.999 * loss.detach()

    try:
        for _ in range(trouble.plain or STEPS):
            trainer.step(closure)
    except Diverged:
        status = "aborted"
    model.eval()
    with torch.no_grad():
        heldout = list(heldout_batches(corpus.heldout["val"], batch_size=BATCH, sequence_length=LENGTH))
        val = fmean(float(model(x, y)) for x, y in heldout[:VAL_BATCHES])
    return {
        "status": status,
        "val": val if math.isfinite(val) else None,
        "real_steps": batches,
        "jumps": trainer.stats.jumps,
        "refused": refused,  # jumps, while the loss rises
        "jumps_undone": trainer.health.jump_check.undone,
        "first": monitor.first,
        "count": monitor.count,
        "advised": monitor.advised,
    }


def recorded() -> Iterator[str]:
    with np.load(SERIES) as series:
        for name in series.files:
            monitor = Watched((RECOVERY,))
            for loss, norm, after in series[name].astype(float):
                monitor.observe_real(float(loss), float(norm), after_prediction=bool(after))
            yield f"recorded {name}: {shown(monitor.first, monitor.count)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file with one JSON line per run")
    parser.add_argument("--seeds", type=int, default=3, help="paired seeds; default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="train only the troubles whose name contains TEXT")
    parser.add_argument("--table", action="store_true", help="print the tables and train nothing")
    parser.add_argument("--recorded", action="store_true", help="false alarms in the recorded healthy runs")
    chosen = parser.parse_args()
    if chosen.recorded:
        print("\n".join(recorded()))
        return
    if chosen.out is None:
        parser.error("--out is missing: where to write the results")
    plain = {name: trouble.plain for name, trouble in PLAIN.items() if trouble.plain}
    results = Results(path=chosen.out, troubles=list(TROUBLES), plain=plain, parts=(*RULES, *RECOVERIES))
    if chosen.table:
        print("\n".join(results.tables()))
        return
    torch.set_num_threads(1)
    corpus = prepare_text(DataConfig())
    for trouble, off, seed in results.queue(chosen.seeds, chosen.only):
        started = time.perf_counter()
        result = trained(corpus, (TROUBLES | PLAIN)[trouble], off, seed)
        results.add(trouble, off, seed, result)
        print(
            f"{trouble}, without {' and '.join(sorted(off)) or 'nothing'}, seed {seed}: {result['val']}, "
            f"{result['jumps']} jumps, {time.perf_counter() - started:.1f} s", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
