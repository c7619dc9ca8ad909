"""What a dynamics model does: from the training state and the length of a jump, predict the loss at the cycle's end."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hybrid_ray.config.hybrid import DynamicsName

__all__ = ["FEATURES", "WORST", "DynamicsModel", "DynamicsName", "Forecast", "bounded", "make_dynamics"]

FEATURES = 64
"""Numbers that describe the training state."""

WORST = 1.0
"""Bound of an outcome: the loss became e times what it would have been."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The outcome that a model expects: log(loss at the end of the coming cycle / loss that the trend of real steps
    alone gives). Below 0 the jump gains.
    """

    mean: float
    std: float  # of the expected outcome: what the model does not know
    noise: float = 0.0  # standard deviation of a measured outcome about the expected one

    def paid_back(self, tolerance: float) -> float:
        """P(measured outcome <= log(1 + tolerance)) for a normal distribution: the confidence.

        Args:
            tolerance: relative rise of the loss that is accepted, above -1.
        """
        distance = math.log1p(tolerance) - self.mean
        spread = math.hypot(self.std, self.noise)
        if spread == 0.0:
            return float(distance >= 0.0)
        return 0.5 * math.erfc(-distance / (spread * math.sqrt(2.0)))


class DynamicsModel(Protocol):
    """Learns online from the cycles of a run. It runs on the CPU and is deterministic: the same calls in the same order
    on a model of the same seed give the same numbers, and the global random state is neither read nor changed.
    Its memory does not grow.

    A feature that is not known may be NaN; it then counts as average.
    """

    def forecast(self, features: Sequence[float], jump: float) -> Forecast:
        """The expected outcome of the coming cycle. Changes nothing, so several jumps can be compared.

        Args:
            features: the `FEATURES` numbers of the training state before the jump.
            jump: length of the jump, as a share of the full one, in [0, 1]; 0: no jump.
        """

    def effect(self, features: Sequence[float], jump: float) -> Forecast:
        """The outcome of the coming cycle minus the one that is expected without a jump. Changes nothing.

        Its ``std`` is that of the difference: what the model does not know about both does not count.
        """

    def observe(self, features: Sequence[float], jump: float, outcome: float) -> None:
        """Learn from a finished cycle. Call it once per cycle, in order.

        Args:
            features: as they were when the cycle began.
            jump: the jump that was made.
            outcome: the measured log ratio, noise included. It is cut to [-`WORST`, `WORST`]; NaN counts as `WORST`.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that later calls depend on, as plain values and tensors of the model's own."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of `state_dict`. The state is copied."""


def bounded(outcome: float) -> float:
    """The outcome within [-`WORST`, `WORST`]; NaN is the worst."""
    return WORST if math.isnan(outcome) else max(-WORST, min(WORST, outcome))


def make_dynamics(name: DynamicsName, *, seed: int) -> DynamicsModel:
    """A model that has seen nothing yet. ``linear`` uses no randomness, so the seed does not matter for it."""
    from hybrid_ray.method.gate.dynamics.linear import LinearDynamics
    from hybrid_ray.method.gate.dynamics.mlp import MLPDynamics
    from hybrid_ray.method.gate.dynamics.rssm import RSSMDynamics

    match name:
        case "linear":
            return LinearDynamics()
        case "mlp":
            return MLPDynamics(seed=seed)
        case "rssm":
            return RSSMDynamics(seed=seed)
