"""Which rule of the divergence monitor fires first? Real runs of pico in trouble, and recorded healthy ones.

    python benchmarks/monitor.py [RUN ...]

No recovery is carried out, so each run shows what the trouble leads to. Printed per run: each rule that fired, the real
step at which it first did, and how often. A rule that is never first, and whose alarm another rule has always raised
before, can go. The recorded series of 10,000 healthy steps (``tests/golden/training_series.npz``) show false alarms.
"""

import argparse
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig
from hybrid_ray.method.guard.divergence import Assessment, DivergenceMonitor, Level, Recovery
from hybrid_ray.method.guard.signals import Alarm
from hybrid_ray.models import GPT2
from hybrid_ray.training.loop import train

HEALTHY = Assessment(level=Level.NORMAL, reasons=(), recovery=Recovery.CONTINUE)
SERIES = Path(__file__).parents[1] / "tests" / "golden" / "training_series.npz"
BEFORE = 12  # batches that a run trains on before its first step: set-up and calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class Trouble:
    steps: int = 250  # nominal
    rate: float = 1.6e-2
    predictor: Any = "none"
    random_tokens: range = range(0)  # batches that consist of random tokens


def slow_momentum(alpha: float) -> dict[str, Any]:
    return {"name": "slow_momentum", "alpha": alpha, "beta3": 0.996}


RUNS = {
    "healthy": Trouble(steps=500, predictor=slow_momentum(8.0)),
    "jumps four times too long": Trouble(steps=500, predictor=slow_momentum(32.0)),
    "average displacement, gain 10": Trouble(steps=400, predictor={"name": "ema_nesterov", "gain": 10.0}),
    "rate 0.1": Trouble(rate=0.1),
    "rate 1": Trouble(steps=200, rate=1.0),
    "one batch of random tokens": Trouble(random_tokens=range(150, 151)),
    "30 batches of random tokens": Trouble(random_tokens=range(150, 180)),
}


class Rules:
    """Counts the alarms of a monitor by rule. It stands in for `DivergenceMonitor.observe_real` and its twin."""

    def __init__(self) -> None:
        self.monitor = DivergenceMonitor()
        self.step = 0
        self.first: dict[str, int] = {}
        self.count: Counter[str] = Counter()

    def real(self, loss: float, norm: float, *, after_prediction: bool) -> Assessment:
        self.step += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._note("not finite")
            return HEALTHY
        z, alarms = self.monitor.loss.observe(loss, after_prediction=after_prediction)
        alarms.extend(self.monitor.gradient.observe(norm, loss_jumped=z > 3.2 * self.monitor.loss.sigma))
        for alarm in alarms:
            self._note(_rule(alarm))
        return HEALTHY

    def prediction(self, error: float) -> Assessment:
        for alarm in self.monitor.prediction.observe(error):
            self._note(_rule(alarm))
        return HEALTHY

    def _note(self, rule: str) -> None:
        self.first.setdefault(rule, self.step)
        self.count[rule] += 1

    def __str__(self) -> str:
        fired = (f"{rule} at {step} ({self.count[rule]})" for rule, step in self.first.items())
        return f"{self.step} real steps: " + (", ".join(fired) or "silent")


def _rule(alarm: Alarm) -> str:
    for words in ("5 of the last 6", "right after a prediction", "given back", "far above"):
        if words in alarm.reason:
            return f"{alarm.cause}: {words}"
    return f"{alarm.cause}: {alarm.level}"


def observed(trouble: Trouble) -> Rules:
    """Train and watch."""
    rules, forward, batches = Rules(), GPT2.forward, -BEFORE

    def disturbed(self: GPT2, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal batches
        batches += self.training
        if self.training and batches in trouble.random_tokens:
            x, y = (torch.randint_like(x, 250) for _ in range(2))
        return forward(self, x, y)

    hybrid = HybridConfig(
        predictor=trouble.predictor, warmup_steps=0, full_steps=5, prediction_horizon=5, correct_steps=0, gate="always",
        trust="off",
    )  # fmt: skip
    config = TrainConfig(
        steps=trouble.steps, batch_size=16, learning_rate=trouble.rate, min_lr_ratio=0.0, lr_warmup_fraction=0.1,
        schedule="linear", evaluations=1, sample_tokens=0, calibration_steps=5, device="cpu",
    )  # fmt: skip
    run = RunConfig(
        arm="baseline" if trouble.predictor == "none" else "hybrid", seed=1, model=ModelConfig(preset="pico"),
        data=DataConfig(), train=config, hybrid=hybrid,
    )  # fmt: skip
    with (
        patch.object(DivergenceMonitor, "observe_real", rules.real),
        patch.object(DivergenceMonitor, "observe_prediction", rules.prediction),
        patch.object(GPT2, "forward", disturbed),
    ):
        train(run)
    return rules


def recorded() -> Iterator[tuple[str, Rules]]:
    with np.load(SERIES) as series:
        for name in series.files:
            rules = Rules()
            for loss, norm, after in series[name].astype(float):
                rules.real(float(loss), float(norm), after_prediction=bool(after))
            yield name, rules


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", choices=[*RUNS, []], help="which runs; default: all, and the recorded ones")
    chosen = parser.parse_args().runs
    for name in chosen or RUNS:
        print(f"{name}: {observed(RUNS[name])}", flush=True)
    for name, rules in () if chosen else recorded():
        print(f"recorded {name}: {rules}", flush=True)
