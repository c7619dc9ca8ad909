"""A predictor of one's own: a short average of what the last windows of real steps did.

`examples/own_predictor.yaml` trains with it: ``hybrid-ray compare examples/own_predictor.yaml``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid_ray import Predictor


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a job can write next to the predictor's name."""

    gain: float = 1.0
    memory: float = 0.5  # share of the older windows in the direction, in [0, 1)


class ShortAverage(Predictor):
    """D = H x gain x a short average of what a real step did. Two buffers: 8 bytes a parameter in fp32."""

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
        self.average.accumulate_(1.0, self.weights.local(), 1.0)  # + weights: what the window did to them is in it
        self.steps += steps
        super().close_window(steps)

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        step = self.options.gain / self.steps if self.steps else 0.0  # of one real step
        self.direction.assign_(self.average.tensors, [horizon * step * factor for factor in factors])
