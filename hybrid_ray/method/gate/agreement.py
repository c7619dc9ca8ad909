"""Compares a window of real steps with its forecast, on sampled coordinates (docs/method.md, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_ray.method.gate.coordinate_sample import CoordinateSample
from hybrid_ray.method.ranks import sum_over_ranks

__all__ = ["Agreement", "AgreementMeter", "JumpSizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """A window's actual displacement d_act and the predicted one d_pred, both per step, over all ranks."""

    cosine: float  # of d_act and d_pred
    alpha: float  # <d_act, d_pred> / |d_pred|^2: the right length of the predicted step, relative to its length
    alpha_by_group: tuple[float, ...]
    ceiling: float | None  # reliability of d_act, from two halves or windows; None: neither exists
    error: float  # |d_act - d_pred| / |d_act|; a prediction of zero has error 1
    size: float  # |d_pred| / |d_act|


@dataclass(frozen=True, kw_only=True, slots=True)
class JumpSizes:
    """Compares a real step's move with the jump J just before it, over all ranks."""

    along: float  # <move, J> / |J|^2
    usual: float  # the same for a typical real step: the mean step of the window before the jump
    jump: float  # |J|^2
    move: float  # |move|^2
    return_: float  # |move + J|^2


class AgreementMeter:
    """Measures how the sampled coordinates move over windows of real steps.

    Args:
        sample: the sampled coordinates.
    """

    def __init__(self, sample: CoordinateSample) -> None:
        self._sample = sample
        self.forecast: torch.Tensor | None = None  # d_pred
        self.displacement_ratio = 1.0
        self._origin: torch.Tensor | None = None  # the weights before the first step
        self._real: torch.Tensor | None = None  # the sum of all displacements of real steps
        self._start: torch.Tensor | None = None
        self._middle: torch.Tensor | None = None
        self._before: torch.Tensor | None = None  # d_act of the window before

    def open(self, weights: Sequence[torch.Tensor]) -> None:
        """Start a window of real steps."""
        self._start, self._middle = self._sample.read(weights), None
        if self._origin is None:
            self._origin, self._real = self._start, torch.zeros_like(self._start)

    def mark_middle(self, weights: Sequence[torch.Tensor]) -> None:
        """Record the middle of the window. Comparing its two halves shows how noisy the window is."""
        self._middle = self._sample.read(weights)

    def foresee(self, direction: Sequence[torch.Tensor] | None, horizon: int) -> None:
        """Store the displacement of one predicted step, to compare it with the next window."""
        self.forecast = None if direction is None else self._sample.read(direction) / horizon

    def along_forecast(self, gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """<gradient, d_pred>, this rank's part. Above 0 the loss rises along d_pred: it overshot."""
        if self.forecast is None:
            return None
        return self._sample.products(self._sample.read(gradients), self.forecast).sum()

    def read(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sampled coordinates."""
        return self._sample.read(weights)

    def against_jump(self, move: torch.Tensor, predicted: int) -> JumpSizes | None:
        """Compare a real step's ``move`` with the ``predicted`` steps before it, with one small all-reduce.

        Returns None if the predicted steps did not move the weights.
        """
        if self.forecast is None:
            return None
        jump = self.forecast * predicted
        usual = torch.zeros_like(jump) if self._before is None else self._before
        pairs = [(move, jump), (usual, jump), (jump, jump), (move, move), (move + jump, move + jump)]
        sums = sum_over_ranks(self._sample.products_of(pairs).sum(-1))
        along, slope, length, moved, back = sums
        if not length > 0.0:
            return None
        return JumpSizes(along=along / length, usual=slope / length, jump=length, move=moved, return_=back)

    def add_real(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """End a window without comparing it with the forecast. Returns its displacement."""
        assert self._start is not None
        assert self._real is not None
        moved = self._sample.read(weights) - self._start
        self._real = self._real + moved
        return moved

    def close(self, weights: Sequence[torch.Tensor], steps: int) -> Agreement | None:
        """End a window of ``steps`` real steps. Returns None without a forecast or without a step.

        It costs one small all-reduce and one wait for the device.
        """
        start, middle, forecast, before = self._start, self._middle, self.forecast, self._before
        moved = self.add_real(weights)
        if not steps:
            return None
        assert start is not None
        assert self._origin is not None
        assert self._real is not None
        actual = moved / steps
        total = start + moved - self._origin
        nothing = torch.zeros_like(actual)
        halves = (nothing, nothing) if middle is None else (middle - start, start + moved - middle)
        pairs = [
            (actual, actual),
            (actual, nothing if forecast is None else forecast),
            (nothing, nothing) if forecast is None else (forecast, forecast),
            halves,
            (halves[0], halves[0]),
            (halves[1], halves[1]),
            (actual, nothing if before is None else before),
            (nothing, nothing) if before is None else (before, before),
            (total, total),
            (total, self._real),
        ]
        self._before = actual
        sums = sum_over_ranks(self._sample.products_of(pairs).flatten())
        rows = [sums[at : at + len(sums) // len(pairs)] for at in range(0, len(sums), len(sums) // len(pairs))]
        act, both, pred, half, first, second, lagged, last, way, real = map(sum, rows)
        if real > 0.0:
            self.displacement_ratio = way / real
        if forecast is None or not pred > 0.0 or not act > 0.0:
            return None
        split = _cosine(half, first, second)
        return Agreement(
            cosine=_cosine(both, act, pred) or 0.0,
            alpha=both / pred,
            alpha_by_group=tuple(b / p if p > 0.0 else 0.0 for b, p in zip(rows[1], rows[2], strict=True)),
            ceiling=_whole_from_half(split) if split is not None else _cosine(lagged, act, last),
            error=(max(0.0, act - 2.0 * both + pred) / act) ** 0.5,
            size=(pred / act) ** 0.5,
        )

    def restart(self, weights: Sequence[torch.Tensor]) -> None:
        """Forget all coordinates; an open window begins anew, without a forecast."""
        was_open = self._start is not None
        self.forecast = self._origin = self._real = self._start = self._middle = self._before = None
        if was_open:
            self.open(weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_sample"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self._sample.device
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, torch.Tensor) else value)


def _cosine(product: float, first: float, second: float) -> float | None:
    """The cosine; None if one of the two vectors is zero or NaN."""
    return product / (first * second) ** 0.5 if first * second > 0.0 else None


def _whole_from_half(correlation: float) -> float:
    """Spearman-Brown: the reliability of the whole from the correlation of its halves."""
    positive = max(0.0, correlation)
    return 2.0 * positive / (1.0 + positive)
