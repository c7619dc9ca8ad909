"""The hybrid method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from hybrid_ray.config.predictors import DEFAULT_PREDICTOR, PredictorChoice
from hybrid_ray.config.section import MOST, Positive, Share, Whole, section

__all__ = ["DynamicsName", "GateName", "HybridConfig"]

GateName = Literal["always", "confidence", "random"]
TrustName = Literal["loss_trend", "off"]
HorizonMode = Literal["fixed", "scaled", "adaptive", "linucb"]
DynamicsName = Literal["linear", "mlp", "rssm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Habits:
    """Default gate of a predictor, and the part of a run in which it predicts."""

    first_fraction: float = 0.0
    off_fraction: float = 0.25
    gate: GateName = "confidence"
    trust: TrustName = "off"


# slow_momentum predicts in the whole run, because AdEMAMix uses its slow average in every step. Predictions from an
# average displacement help in the middle of a run: early ones raise the loss, and late ones gain nothing because the
# learning rate falls to zero. These fractions did best in trials (docs/findings.md).
_HABITS: dict[str, _Habits] = {
    "slow_momentum": _Habits(off_fraction=0.0, gate="always", trust="loss_trend"),
    "ema_nesterov": _Habits(first_fraction=0.16, off_fraction=0.24),
}


@section
class HybridConfig:
    """The hybrid method (docs/method.md, section 1). The first three settings are the ones a search usually tunes.

    A cycle is Full (``full_steps`` real steps), Predict (``prediction_horizon`` predicted steps, a real step after
    every ``correction_interval`` of them), Correct (``correct_steps`` real steps). ``predictor="none"`` trains plainly.
    """

    confidence_threshold: Share = Field(
        default=0.3,
        description="Predict in cycles whose confidence is at least this; 0: always. Confidence is the probability "
        "that at the end of the coming cycle (jump, then its real steps) the loss is within payback_tolerance of what "
        "the trend of real steps alone would give",
    )
    prediction_horizon: int = Field(default=5, ge=1, le=1_000_000, description="Predicted steps in one cycle")
    correction_interval: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Insert one real step (a micro-correction) after this many predicted steps; 0: never",
    )
    warmup_steps: Whole = Field(default=100, description="Real steps before the first cycle")
    full_steps: int = Field(default=10, ge=1, le=1_000_000, description="Real steps at the start of a cycle")
    correct_steps: int = Field(default=5, ge=0, le=1_000_000, description="Real steps after the predicted ones")
    predictor: PredictorChoice = Field(
        default=DEFAULT_PREDICTOR,
        description="Method that predicts the weights: a name, or {name: ..., option: ...}; package.module:Name for "
        "your own predictor",
    )
    gate: GateName | None = Field(
        default=None, description="Rule that decides whether a cycle predicts; null: the predictor's default"
    )
    trust: TrustName | None = Field(
        default=None,
        description="loss_trend: no predictions while the training loss rises; null: the predictor's default",
    )
    gate_rate: Share = Field(default=0.5, description="For gate: random. Fraction of cycles that predict")
    lr_factor: Positive = Field(
        default=1.0,
        description="Factor on train.learning_rate in runs that predict. The baseline, the frontier and the controls "
        "without predictions keep train.learning_rate",
    )
    couple_lr: bool = Field(
        default=True, description="Scale predicted steps by the current learning rate divided by its maximum"
    )
    first_fraction: Share | None = Field(
        default=None,
        description="Fraction at the start of the run without predictions; null: the predictor's default (ema_nesterov "
        "0.16, others 0)",
    )
    off_fraction: Share | None = Field(
        default=None,
        description="Fraction at the end of the run without predictions; null: the predictor's default (slow_momentum "
        "0, ema_nesterov 0.24, others 0.25)",
    )
    horizon_mode: HorizonMode = Field(
        default="fixed",
        description="scaled: the horizon shrinks with confidence and learning rate; adaptive: the largest of H, H/2, "
        "H/4 whose confidence reaches the threshold; linucb: a bandit chooses among 0, H/4, H/2, H by what was "
        "gained per second",
    )
    dynamics: DynamicsName = Field(
        default="linear", description="Model that forecasts the loss at the end of a cycle, for the confidence"
    )
    payback_tolerance: Positive = Field(
        default=0.01, description="A jump is paid back if the loss is at most this fraction above its trend"
    )
    explore: Share | None = Field(
        default=None,
        description="Fraction of decisions made at random (no jump, or a half or a quarter of it), to learn what jumps "
        "do; null: 0.1 with gate: confidence and a threshold above 0, else 0",
    )
    look_every: Whole = Field(
        default=0,
        description="Measure the loss of a decide batch before and after every so many cycles, in training time, to "
        "learn from it; 0: never",
    )
    # Lowers the error of the next prediction (method/predictors/corrector.py). Off by default because it changes the
    # length of predictions independently of ``gain``.
    residual_feedback: Share = Field(
        default=0.0,
        description="How fast the length of predictions adapts to the real steps that follow them; 0: never",
    )
    divergence_sigma: Positive = Field(
        default=2.5,
        description="z-score of the training loss from which a rise counts as a sign of divergence (Caution)",
    )
    sample_one_in: int = Field(
        default=64, ge=1, le=MOST, description="Agreement and residuals are computed from one weight in this many"
    )
    buffer_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Number format of the predictor's buffers"
    )
    buffer_device: Literal["model", "host"] = Field(
        default="model",
        description="Memory that holds the predictor's buffers; host: main memory, pinned if there is a GPU",
    )
    offload_optimizer: bool = Field(
        default=False, description="Move the optimizer state to host memory during each prediction, to free GPU memory"
    )

    @property
    def cycle_steps(self) -> int:
        """Nominal steps of one whole cycle, micro-corrections included."""
        micro = (self.prediction_horizon - 1) // self.correction_interval if self.correction_interval else 0
        return self.full_steps + self.prediction_horizon + micro + self.correct_steps

    @property
    def predicts_from(self) -> float:
        """The fraction of the run after which predictions begin."""
        return self._habits.first_fraction if self.first_fraction is None else self.first_fraction

    @property
    def predicts_until(self) -> float:
        """The fraction of the run after which predictions end."""
        return 1.0 - (self._habits.off_fraction if self.off_fraction is None else self.off_fraction)

    def real_steps(self, nominal: int) -> float:
        """Real steps of a run of ``nominal`` steps, if all cycles from `predicts_from` to `predicts_until` predict."""
        part = max(0.0, self.predicts_until - self.predicts_from)
        return nominal * (1.0 - part * self.prediction_horizon / self.cycle_steps)

    @property
    def gate_kind(self) -> GateName:
        return self.gate or self._habits.gate

    @property
    def uses_confidence(self) -> bool:
        """Whether a decision depends on the confidence. If not, none is computed (docs/method.md, section 3)."""
        return self.gate_kind == "confidence" or self.horizon_mode == "scaled"

    def problems(self) -> Iterator[str]:
        """Settings that can't work together."""
        if self.horizon_mode == "adaptive" and self.gate_kind != "confidence":
            yield (
                f"horizon_mode is 'adaptive' but gate is {self.gate_kind!r}, which has no threshold: set gate: "
                "confidence, or another horizon_mode"
            )

    @property
    def exploration(self) -> float:
        """The fraction of decisions made at random."""
        if self.explore is not None:
            return self.explore
        return 0.1 if self.gate_kind == "confidence" and self.confidence_threshold > 0.0 else 0.0

    @property
    def trust_kind(self) -> TrustName:
        return self.trust or self._habits.trust

    @property
    def _habits(self) -> _Habits:
        return _HABITS.get(self.predictor.moving.name, _Habits())
