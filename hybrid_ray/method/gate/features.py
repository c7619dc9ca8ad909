"""The training state as 64 numbers, which the dynamics model learns from. Pure Python; about 10 us per real step.

All of them come from numbers that a step has anyway: no extra forward pass, no wait for the device. They are the same
on every rank, because losses, norms and measurements are all-reduced before they arrive here. A feature that is not
known yet is NaN.

"Relative" means: the difference from the trend of real steps (`RealStepTrend`), as a log ratio. ``_4``, ``_16`` and
``_64`` are averages over about so many cycles; the numbers in the names of losses and norms are real steps.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from hybrid_ray.method.gate.agreement import Agreement

__all__ = ["FEATURE_NAMES", "TrainingState"]

FEATURE_NAMES: tuple[str, ...] = (
    # The last four cycles, the newest first: share of the full jump; relative loss of the first real step, of the first
    # half and of the second half of the real steps.
    *(f"{name}_{cycle}_ago" for cycle in (1, 2, 3, 4) for name in ("jump", "first", "middle", "end")),
    # rise: first loss after a jump above the loss before it. repaid: how far the real steps brought it down again. end:
    # relative loss at the end of cycles with and without a jump.
    *(f"{name}_{reach}" for reach in (4, 16, 64) for name in ("rise", "repaid", "end_jumped", "end_plain")),
    # Differences of fast and slow averages of the loss, over the loss; slopes of three averages; slope of the trend.
    *("loss_5_15", "loss_15_50", "loss_50_150", "loss_150_500", "slope_15", "slope_50", "slope_150", "trend_slope"),
    # Standard deviation of a batch's loss; loss above its lowest average; share of the first loss that is left (log).
    *("loss_noise", "above_lowest", "fallen"),
    # Log ratios of the last gradient norm and of its averages; standard deviation of the log norm.
    *("norm_last_5", "norm_5_50", "norm_50_500", "norm_noise"),
    # The last window against its forecast: see `Agreement`; ``agreement`` is the score made of them.
    *("cosine", "cosine_16", "alpha", "alpha_16", "ceiling", "error", "agreement", "displacement_ratio"),
    # log(|D| of a full jump / displacement of the window's real steps), and its change.
    *("jump_size", "jump_growth"),
    # First gradient after a jump: <g, D> / loss; curvature <D, H D> / loss, from <g, D> and the rise; overshoots.
    *("along", "along_16", "curvature_16", "overshoot", "overshoot_16"),
    # Share of jumps that were not paid back; share of the full jump that was made; divergence level of the cycle, from
    # 0 (normal) to 3 (critical).
    *("misses_16", "jump_16", "level", "level_16"),
    # Learning rate over its maximum; share of the run that is done.
    *("lr", "progress"),
)


class TrainingState:
    """Collects the features. ``values`` has the ones known so far, by name."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self._averages: dict[str, tuple[float, int]] = {}  # value, and how many numbers it is the average of
        self._first_loss = math.nan
        self._lowest = math.inf

    def vector(self) -> list[float]:
        """The features in the order of `FEATURE_NAMES`."""
        return [self.values.get(name, math.nan) for name in FEATURE_NAMES]

    def average(self, name: str) -> float:
        """An average of `_average`; NaN before its first number."""
        return self._averages.get(name, (math.nan, 0))[0]

    def observe_step(self, loss: float, norm: float) -> None:
        """Update with the loss and the gradient norm of a real step, both finite."""
        if math.isnan(self._first_loss):
            self._first_loss = loss
        before = self.average("loss 50")
        for reach in _LOSSES:
            self._average(f"loss {reach}", loss, reach)
        for reach in _SLOPES:
            self._average(f"slow loss {reach}", self.average(f"loss {reach}"), reach)
        if not math.isnan(before):
            self._average("loss noise", (loss - before) ** 2, 100)
        log_norm = math.log(max(norm, 1e-30))
        before = self.average("norm 50")
        for reach in _NORMS:
            self._average(f"norm {reach}", log_norm, reach)
        if not math.isnan(before):
            self._average("norm noise", (log_norm - before) ** 2, 100)
        self.values["norm_last_5"] = log_norm - self.average("norm 5")
        self._lowest = min(self._lowest, self.average("loss 50"))

    def observe_jump(self, along: float) -> None:
        """Update with <g, D>, g being the first gradient after the jump D."""
        self.values["overshoot"] = float(along > 0.0)
        self._average("overshoot_16", float(along > 0.0), 16)
        self.values["along"] = along / self.scale
        self._average("along_16", along / self.scale, 16)

    def observe_rise(self, rise: float) -> None:
        """Update with the loss of the first real step after a jump, minus that before it.

        To second order the rise is <g0, D> + <D, H D> / 2 and <g, D> after the jump is <g0, D> + <D, H D>.
        """
        if "along" in self.values:
            self._average("curvature_16", 2.0 * (self.values["along"] - rise / self.scale), 16)

    def observe_window(self, measured: Agreement, *, jump_size: float) -> None:
        """Update with a window's comparison with its forecast; ``jump_size`` is |D| over the window's displacement."""
        values = self.values
        values["cosine"], values["alpha"], values["error"] = measured.cosine, measured.alpha, measured.error
        if measured.ceiling is not None:
            values["ceiling"] = measured.ceiling
        self._average("cosine_16", measured.cosine, 16)
        self._average("alpha_16", measured.alpha, 16)
        if jump_size > 0.0:
            size = math.log(jump_size)
            values["jump_growth"] = size - self.average("jump size")
            values["jump_size"] = size
            self._average("jump size", size, 16)

    def end_cycle(self, *, jump: float, first: float, middle: float, end: float, paid_back: bool, level: int) -> None:
        """Update with a finished cycle; ``first``, ``middle`` and ``end`` are its relative losses."""
        values = self.values
        before = values.get("end_1_ago", 0.0)
        newest = {"jump": jump, "first": first, "middle": middle, "end": end}
        for name, value in newest.items():
            for cycle in (4, 3, 2):
                if (earlier := f"{name}_{cycle - 1}_ago") in values:
                    values[f"{name}_{cycle}_ago"] = values[earlier]
            values[f"{name}_1_ago"] = value
        for reach in (4, 16, 64):
            if jump > 0.0:
                self._average(f"rise_{reach}", first - before, reach)
                self._average(f"repaid_{reach}", first - end, reach)
            self._average(f"end_{'jumped' if jump > 0.0 else 'plain'}_{reach}", end, reach)
        if jump > 0.0:
            self._average("misses_16", float(not paid_back), 16)
        self._average("jump_16", jump, 16)
        values["level"] = float(level)
        self._average("level_16", float(level), 16)

    def describe(self, **numbers: float) -> None:
        """Bring the features that follow from averages up to date, and set others (``lr``, ``progress``) by name."""
        values, scale = self.values, self.scale
        for fast, slow in pairwise(_LOSSES):
            values[f"loss_{fast}_{slow}"] = (self.average(f"loss {fast}") - self.average(f"loss {slow}")) / scale
        for reach in _SLOPES:
            values[f"slope_{reach}"] = (self.average(f"loss {reach}") - self.average(f"slow loss {reach}")) / scale
        for fast, slow in pairwise(_NORMS):
            values[f"norm_{fast}_{slow}"] = self.average(f"norm {fast}") - self.average(f"norm {slow}")
        values["loss_noise"] = self.average("loss noise") ** 0.5 / scale
        values["norm_noise"] = self.average("norm noise") ** 0.5
        values["above_lowest"] = (self.average("loss 50") - self._lowest) / scale
        values["fallen"] = math.log(max(scale, 1e-30) / max(abs(self._first_loss), 1e-30))
        values |= {name: value for name, (value, _) in self._averages.items() if name in _NAMES}
        values |= numbers

    @property
    def scale(self) -> float:
        """The size of the loss: its average over 150 real steps, without its sign."""
        return abs(self.average("loss 150")) or 1.0

    def _average(self, name: str, value: float, reach: int) -> None:
        mean, count = self._averages.get(name, (0.0, 0))
        count = min(count + 1, reach)
        self._averages[name] = mean + (value - mean) / count, count

    def state_dict(self) -> dict[str, Any]:
        averages = {name: list(pair) for name, pair in self._averages.items()}
        return {"values": dict(self.values), "averages": averages, "losses": [self._first_loss, self._lowest]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state["values"])
        self._averages = {name: (value, int(count)) for name, (value, count) in state["averages"].items()}
        self._first_loss, self._lowest = state["losses"]


_NAMES = frozenset(FEATURE_NAMES)
_LOSSES = (5, 15, 50, 150, 500)
_SLOPES = (15, 50, 150)
_NORMS = (5, 50, 500)
