"""Models that predict from a run's own cycles whether a jump will be paid back (docs/method.md, section 3)."""

from hybrid_ray.method.gate.dynamics.bandit import LinUCB
from hybrid_ray.method.gate.dynamics.base import FEATURES, DynamicsModel, DynamicsName, Forecast, make_dynamics

__all__ = ["FEATURES", "DynamicsModel", "DynamicsName", "Forecast", "LinUCB", "make_dynamics"]
