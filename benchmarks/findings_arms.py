"""The runs of ``findings.py``: what each arm trains, and the learning rates that are tried for it.

Lengths are in *real* steps: a hybrid run of 4,000 real steps with one predicted step for each has 8,000 nominal steps.
Its learning rate decays linearly to zero over its nominal steps, as a plain run's does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hybrid_ray.config import DataConfig, HybridConfig, ModelConfig, RunConfig, TrainConfig

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
