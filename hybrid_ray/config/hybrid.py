"""The hybrid method."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybrid_ray.config.checks import above, at_least, choice, within

__all__ = ["HybridConfig", "PredictorName"]

PredictorName = Literal["none", "ema_nesterov", "snoo", "linear_fit", "momentum", "zero", "random", "reversed"]


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
    gain: float = 1.0  # a predicted step moves by gain x the averaged displacement of a real step
    time_constant: float = 100.0  # real steps; of the displacement average (ema_nesterov)
    outer_lr: float = 0.6  # snoo
    outer_momentum: float = 0.5  # snoo
    fit_windows: int = 4  # linear_fit: snapshots in one fit
    couple_lr: bool = True  # scale predicted steps by lr / lr_max
    off_fraction: float = 0.25  # no predictions in this last part of the run (needs total_steps)
    total_steps: int | None = None  # nominal steps of the whole run
    horizon_mode: Literal["fixed", "scaled"] = "fixed"
    # How fast the length of predictions follows what real steps then do (method/corrector.py, with what it brought).
    # It lowers the error of the next prediction. Off (0) because it steers the length whatever ``gain`` says.
    residual_feedback: float = 0.0
    divergence_sigma: float = 2.5  # loss z-score that is Caution
    sample_one_in: int = 64  # coordinates that measures and residuals look at
    buffer_dtype: Literal["float32", "bfloat16"] = "float32"
    buffer_device: Literal["model", "host"] = "model"  # host: pinned memory where there is a GPU
    offload_optimizer: bool = False  # optimizer state to host memory for each Predict phase, and back
    accumulate: int = 1  # micro-batches a real step
    clip_norm: float | None = None
    seed: int = 0

    @property
    def cycle_steps(self) -> int:
        """Nominal steps of one whole cycle, micro-corrections included."""
        micro = (self.prediction_horizon - 1) // self.correction_interval if self.correction_interval else 0
        return self.full_steps + self.prediction_horizon + micro + self.correct_steps

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
        yield from within("off_fraction", self.off_fraction, 0.0, 1.0)
        yield from at_least("total_steps", self.total_steps, 1)
        yield from choice("horizon_mode", self.horizon_mode, Literal["fixed", "scaled"])
        yield from within("residual_feedback", self.residual_feedback, 0.0, 1.0)
        yield from above("divergence_sigma", self.divergence_sigma, 0.0)
        yield from at_least("sample_one_in", self.sample_one_in, 1)
        yield from choice("buffer_dtype", self.buffer_dtype, Literal["float32", "bfloat16"])
        yield from choice("buffer_device", self.buffer_device, Literal["model", "host"])
        yield from at_least("accumulate", self.accumulate, 1)
        if self.clip_norm is not None:
            yield from above("clip_norm", self.clip_norm, 0.0)
