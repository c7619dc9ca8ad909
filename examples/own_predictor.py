"""Your own predictor: a short average of the displacement of the last windows of real steps.

`examples/own_predictor.yaml` searches with it: ``hybrid-ray run examples/own_predictor.yaml``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_ray import Predictor


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options that a job can set next to the predictor's name."""

    gain: float = 1.0
    memory: float = 0.5  # decay of the older windows in the average, in [0, 1)


class ShortAverage(Predictor):
    """D = H x gain x a short average of the displacement per real step. Two buffers: 8 bytes per parameter in fp32."""

    Options = Options
    options: Options
    steps: float  # real steps in the average

    def prepare(self) -> None:
        self.average = self.add_buffers("average")

    def initial_numbers(self) -> dict[str, float]:
        return {"steps": 0.0}

    def open_window(self) -> None:
        self.average.accumulate_(self.options.memory, self.weights.local(), -1.0)  # average x memory - weights
        self.steps *= self.options.memory
        super().open_window()

    def close_window(self, steps: int) -> None:
        self.average.accumulate_(1.0, self.weights.local(), 1.0)  # + weights: adds the displacement of the window
        self.steps += steps
        super().close_window(steps)

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        step = self.options.gain / self.steps if self.steps else 0.0  # factor that gives one real step
        self.direction.assign_(self.average.tensors, [horizon * step * factor for factor in factors])
