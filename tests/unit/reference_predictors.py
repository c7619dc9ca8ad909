"""Slow twins of the predictors: plain Python lists of whole weight snapshots, every sum written out.

They exist to be obviously right. Tests run them beside the fast ones on the same weights.

A snapshot is a list of floats: all coordinates of the model, in order. ``windows`` are the stretches of real steps so
far, oldest first; ``cycles`` are the windows between one plan and the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Snapshot", "Window", "adam_coasting", "ema_nesterov", "linear_fit", "sgd_coasting", "snoo"]

Snapshot = list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of real steps without a predicted one between."""

    start: Snapshot
    end: Snapshot
    steps: int

    @property
    def displacement(self) -> Snapshot:
        return [end - start for start, end in zip(self.start, self.end, strict=True)]


def ema_nesterov(windows: Sequence[Window], *, time_constant: float, gain: float, horizon: int) -> Snapshot:
    """H x gain x the mean displacement of a real step, windows weighted by exp(-age / time_constant)."""
    ages = [sum(window.steps for window in windows[number:-1]) for number in range(len(windows))]
    weights = [math.exp(-age / time_constant) for age in ages]
    steps = sum(weight * window.steps for weight, window in zip(weights, windows, strict=True))
    displacements = [window.displacement for window in windows]
    return [
        horizon * gain * sum(weight * d[i] for weight, d in zip(weights, displacements, strict=True)) / steps
        for i in range(len(windows[0].start))
    ]


def snoo(cycles: Sequence[Sequence[Window]], *, outer_lr: float, outer_momentum: float) -> Snapshot:
    """The outer Nesterov step after the last cycle, less what that cycle did itself."""
    size = len(cycles[0][0].start)
    momentum, delta = [0.0] * size, [0.0] * size
    for windows in cycles:
        delta = [sum(window.displacement[i] for window in windows) for i in range(size)]
        momentum = [outer_momentum * b + d for b, d in zip(momentum, delta, strict=True)]
    return [outer_lr * (outer_momentum * b + d) - d for b, d in zip(momentum, delta, strict=True)]


def linear_fit(cycles: Sequence[Sequence[Window]], *, points: int, gain: float, horizon: int) -> Snapshot:
    """H x gain x the slope, by the normal equations, through the last ``points`` cycle ends of the real steps' path."""
    size = len(cycles[0][0].start)
    path, times = [[0.0] * size], [0.0]
    for windows in cycles:
        moved = [sum(window.displacement[i] for window in windows) for i in range(size)]
        path.append([before + step for before, step in zip(path[-1], moved, strict=True)])
        times.append(times[-1] + sum(window.steps for window in windows))
    path, times = path[-points:], times[-points:]
    n, st, stt = len(times), sum(times), sum(t * t for t in times)
    slopes = []
    for i in range(size):
        sx = sum(point[i] for point in path)
        stx = sum(t * point[i] for t, point in zip(times, path, strict=True))
        slopes.append((n * stx - st * sx) / (n * stt - st * st))
    return [horizon * gain * slope for slope in slopes]


def adam_coasting(
    mean: Snapshot, square: Snapshot, *, step: int, lr: float, betas: tuple[float, float], eps: float, horizon: int
) -> Snapshot:
    """Adam's own update, H times over, with a gradient of zero."""
    moved = [0.0] * len(mean)
    for _ in range(horizon):
        step += 1
        mean = [betas[0] * m for m in mean]
        square = [betas[1] * v for v in square]
        for i, (m, v) in enumerate(zip(mean, square, strict=True)):
            corrected = m / (1.0 - betas[0] ** step)
            moved[i] -= lr * corrected / (math.sqrt(v / (1.0 - betas[1] ** step)) + eps)
    return moved


def sgd_coasting(buffer: Snapshot, *, lr: float, momentum: float, nesterov: bool, horizon: int) -> Snapshot:
    """SGD's own update, H times over, with a gradient of zero."""
    moved = [0.0] * len(buffer)
    for _ in range(horizon):
        buffer = [momentum * b for b in buffer]
        for i, b in enumerate(buffer):
            moved[i] -= lr * (momentum * b if nesterov else b)
    return moved
