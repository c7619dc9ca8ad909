"""The hybrid method."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from hybrid_ray.config.predictors import PredictorChoice, PredictorConfig
from hybrid_ray.config.section import MOST, Positive, Share, Whole, section

__all__ = ["GateName", "HybridConfig"]

GateName = Literal["always", "confidence", "random"]
TrustName = Literal["loss_trend", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Habits:
    """Where in a run a predictor works, and how it is gated, unless a job says otherwise."""

    first_fraction: float = 0.0
    off_fraction: float = 0.25
    gate: GateName = "confidence"
    trust: TrustName = "off"


# AdEMAMix steps along its slow average from the first step to the last, and the gain comes from all of them.
# Jumps along a displacement average pay in the middle of a run: early ones raise the loss, late ones have nothing to
# gain while the rate falls to zero. The fractions did best in trials (docs/findings.md).
_HABITS: dict[str, _Habits] = {
    "slow_momentum": _Habits(off_fraction=0.0, gate="always", trust="loss_trend"),
    "ema_nesterov": _Habits(first_fraction=0.16, off_fraction=0.24),
}


@section
class HybridConfig:
    """The hybrid method (docs/method.md, section 1). Every field has a default; the three tuned knobs come first.

    A cycle is Full (``full_steps`` real steps), Predict (``prediction_horizon`` predicted steps, a real step after
    every ``correction_interval`` of them), Correct (``correct_steps`` real steps). ``predictor="none"`` trains plainly.
    """

    confidence_threshold: Share = Field(
        default=0.3,
        description="Predict where the confidence (agreement of displacements) is at least this; 0: in every cycle",
    )
    prediction_horizon: int = Field(default=5, ge=1, le=1_000_000, description="Predicted steps of one cycle")
    correction_interval: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="A real step after so many predicted ones (a micro-correction); 0: none",
    )
    warmup_steps: Whole = Field(default=100, description="Real steps before the first cycle")
    full_steps: int = Field(default=10, ge=1, le=1_000_000, description="Real steps at the start of a cycle")
    correct_steps: int = Field(default=5, ge=0, le=1_000_000, description="Real steps after a prediction")
    predictor: PredictorChoice = Field(
        default=PredictorConfig().changed_to("ema_nesterov"),
        description="What predicts the weights: a name, or {name: ..., option: ...}; package.module:Name for one of "
        "your own",
    )
    gate: GateName | None = Field(
        default=None, description="What decides whether a cycle predicts (method/gate); null: the predictor's own"
    )
    trust: TrustName | None = Field(
        default=None,
        description="loss_trend: no prediction while the training loss rises (method/gate/loss_trend.py); null: the "
        "predictor's own",
    )
    gate_rate: Share = Field(default=0.5, description="gate random: share of the cycles that predict")
    lr_factor: Positive = Field(
        default=1.0,
        description="Learning rate of a run that predicts, over train.learning_rate. Baseline, frontier and the "
        "controls without predictions keep the rate tuned for them",
    )
    couple_lr: bool = Field(default=True, description="Scale predicted steps by lr / lr_max")
    first_fraction: Share | None = Field(
        default=None,
        description="No predictions in this first part of the run; null: the predictor's own (0, ema_nesterov 0.16)",
    )
    off_fraction: Share | None = Field(
        default=None,
        description="No predictions in this last part of the run; null: the predictor's own (slow_momentum 0, "
        "ema_nesterov 0.24, others 0.25)",
    )
    horizon_mode: Literal["fixed", "scaled"] = Field(
        default="fixed", description="scaled: the horizon shrinks with the learning rate"
    )
    # It lowers the error of the next prediction (method/corrector.py). Off because it steers the length of predictions
    # whatever ``gain`` says.
    residual_feedback: Share = Field(
        default=0.0, description="How fast the length of predictions follows what real steps then do; 0: not at all"
    )
    divergence_sigma: Positive = Field(
        default=2.5, description="z-score of the loss at which training is watched (Caution)"
    )
    sample_one_in: int = Field(
        default=64, ge=1, le=MOST, description="Measures and residuals look at one coordinate in so many"
    )
    buffer_dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the predictor's buffers")
    buffer_device: Literal["model", "host"] = Field(
        default="model", description="Where the predictor's buffers are; host: pinned memory where there is a GPU"
    )
    offload_optimizer: bool = Field(
        default=False, description="Move optimizer state to host memory for each prediction, and back"
    )

    @property
    def cycle_steps(self) -> int:
        """Nominal steps of one whole cycle, micro-corrections included."""
        micro = (self.prediction_horizon - 1) // self.correction_interval if self.correction_interval else 0
        return self.full_steps + self.prediction_horizon + micro + self.correct_steps

    @property
    def predicts_from(self) -> float:
        """The share of the run after which predictions begin."""
        return self._habits.first_fraction if self.first_fraction is None else self.first_fraction

    @property
    def predicts_until(self) -> float:
        """The share of the run after which predictions end."""
        return 1.0 - (self._habits.off_fraction if self.off_fraction is None else self.off_fraction)

    def real_steps(self, nominal: int) -> float:
        """Real steps of a run of so many nominal ones, if it predicts in every cycle of its part for predictions."""
        part = max(0.0, self.predicts_until - self.predicts_from)
        return nominal * (1.0 - part * self.prediction_horizon / self.cycle_steps)

    @property
    def gate_kind(self) -> GateName:
        return self.gate or self._habits.gate

    @property
    def trust_kind(self) -> TrustName:
        return self.trust or self._habits.trust

    @property
    def _habits(self) -> _Habits:
        return _HABITS.get(self.predictor.name, _Habits())
