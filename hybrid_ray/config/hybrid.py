"""The hybrid method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybrid_ray.config.checks import above, at_least, choice, within

__all__ = ["GateName", "HybridConfig", "PredictorName"]

PredictorName = Literal[
    "none", "slow_momentum", "ema_nesterov", "snoo", "linear_fit", "momentum", "zero", "random", "reversed"
]  # fmt: skip
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
_HABITS: dict[str, _Habits] = {"slow_momentum": _Habits(off_fraction=0.0, gate="always", trust="loss_trend")}


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """The hybrid method (docs/method.md, section 1). Every field has a default; the three tuned knobs come first.

    A cycle is Full (``full_steps`` real steps), Predict (``prediction_horizon`` predicted steps, a real step after
    every ``correction_interval`` of them), Correct (``correct_steps`` real steps). ``predictor="none"`` trains plainly.
    """

    confidence_threshold: float = 0.3
    prediction_horizon: int = 5
    correction_interval: int = 0  # 0: no micro-corrections
    warmup_steps: int = 100
    full_steps: int = 10
    correct_steps: int = 5
    predictor: PredictorName = "ema_nesterov"
    gate: GateName | None = None  # what decides whether to predict (method/gate.py); None: the predictor's own
    trust: TrustName | None = None  # loss_trend: no prediction while the training loss rises (method/trust.py)
    gate_rate: float = 0.5  # share of the decisions at which gate: random predicts
    alpha: float = 8.0  # slow_momentum: weight of the slow average at the end of the run; it grows from 0
    beta3: float = 0.996  # slow_momentum: decay of the slow average at the end of the run
    # slow_momentum with Adam's kin: move only where the fast average agrees in sign, or as far as the slow one is more
    # than noise (predictors/caution.py). An experiment.
    caution: Literal["none", "sign", "shrink"] = "none"
    gain: float = 1.0  # a predicted step moves by gain x the averaged displacement of a real step
    time_constant: float = 100.0  # real steps; of the displacement average (ema_nesterov)
    outer_lr: float = 0.6  # snoo
    outer_momentum: float = 0.5  # snoo
    fit_windows: int = 4  # linear_fit: snapshots in one fit
    # The learning rate of a run that predicts, over train.learning_rate, which is the rate that suits plain training.
    # Only the hybrid has it: baseline, frontier and the controls without predictions keep the rate tuned for them.
    lr_factor: float = 1.0
    couple_lr: bool = True  # scale predicted steps by lr / lr_max
    # No predictions in these parts of the run, its first and its last. None: the predictor's own.
    first_fraction: float | None = None
    off_fraction: float | None = None
    horizon_mode: Literal["fixed", "scaled"] = "fixed"
    # How fast the length of predictions follows what real steps then do (method/corrector.py, with what it brought).
    # It lowers the error of the next prediction. Off (0) because it steers the length whatever ``gain`` says.
    residual_feedback: float = 0.0
    divergence_sigma: float = 2.5  # loss z-score that is Caution
    sample_one_in: int = 64  # coordinates that measures and residuals look at
    buffer_dtype: Literal["float32", "bfloat16"] = "float32"
    buffer_device: Literal["model", "host"] = "model"  # host: pinned memory where there is a GPU
    offload_optimizer: bool = False  # optimizer state to host memory for each Predict phase, and back

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

    @property
    def gate_kind(self) -> GateName:
        return self.gate or self._habits.gate

    @property
    def trust_kind(self) -> TrustName:
        return self.trust or self._habits.trust

    @property
    def _habits(self) -> _Habits:
        return _HABITS.get(self.predictor, _Habits())

    def problems(self) -> Iterator[str]:
        yield from within("confidence_threshold", self.confidence_threshold, 0.0, 1.0)
        yield from at_least("prediction_horizon", self.prediction_horizon, 1)
        yield from at_least("correction_interval", self.correction_interval, 0)
        yield from at_least("warmup_steps", self.warmup_steps, 0)
        yield from at_least("full_steps", self.full_steps, 1)
        yield from at_least("correct_steps", self.correct_steps, 0)
        yield from choice("predictor", self.predictor, PredictorName)
        yield from at_least("gain", self.gain, 0.0)
        yield from above("time_constant", self.time_constant, 0.0)
        yield from above("outer_lr", self.outer_lr, 0.0)
        yield from within("outer_momentum", self.outer_momentum, 0.0, 0.999)
        yield from at_least("fit_windows", self.fit_windows, 2)
        yield from above("lr_factor", self.lr_factor, 0.0)
        if self.first_fraction is not None:
            yield from within("first_fraction", self.first_fraction, 0.0, 1.0)
        if self.off_fraction is not None:
            yield from within("off_fraction", self.off_fraction, 0.0, 1.0)
        if self.gate is not None:
            yield from choice("gate", self.gate, GateName)
        if self.trust is not None:
            yield from choice("trust", self.trust, TrustName)
        yield from within("gate_rate", self.gate_rate, 0.0, 1.0)
        yield from at_least("alpha", self.alpha, 0.0)
        yield from within("beta3", self.beta3, 0.0, 0.999999)
        yield from choice("caution", self.caution, Literal["none", "sign", "shrink"])
        if self.predictor == "slow_momentum" and self.horizon_mode == "scaled":
            yield "horizon_mode is 'scaled' but the jumps of slow_momentum do not depend on the horizon: use fixed"
        yield from choice("horizon_mode", self.horizon_mode, Literal["fixed", "scaled"])
        yield from within("residual_feedback", self.residual_feedback, 0.0, 1.0)
        yield from above("divergence_sigma", self.divergence_sigma, 0.0)
        yield from at_least("sample_one_in", self.sample_one_in, 1)
        yield from choice("buffer_dtype", self.buffer_dtype, Literal["float32", "bfloat16"])
        yield from choice("buffer_device", self.buffer_device, Literal["model", "host"])
