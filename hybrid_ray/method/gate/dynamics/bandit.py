"""LinUCB: chooses the length of a jump by what it is likely to gain (Li et al., arXiv 1003.0146, algorithm 1)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybrid_ray.method.gate.dynamics.base import FEATURES
from hybrid_ray.method.gate.dynamics.linear import RecursiveLeastSquares
from hybrid_ray.method.gate.dynamics.standardizer import RunningScale, Standardizer

__all__ = ["LinUCB"]


class LinUCB:
    """One linear model of the reward per arm. It chooses the arm with the largest mean + ``explore`` x std.

    Rewards are divided by their root mean square, so their unit does not matter. Memory is constant as long as the arms
    are the same few numbers.

    Args:
        explore: the paper's alpha. At 0 it chooses the best mean.
    """

    _MEMORY = 400.0  # observations of one arm

    def __init__(self, *, explore: float = 1.0) -> None:
        self._explore = explore
        self._standardizer = Standardizer(FEATURES)
        self._scale = RunningScale()
        self._arms: dict[float, RecursiveLeastSquares] = {}

    def choose(self, features: Sequence[float], arms: Sequence[float]) -> float:
        """The best of ``arms`` in this state. Of equally good ones it takes the first."""
        phi = self._phi(features)

        def bound(arm: float) -> float:
            mean, std = self._arms.get(arm, self._new_arm()).forecast(phi)
            return mean + self._explore * std

        return max(arms, key=bound)

    def observe(self, features: Sequence[float], arm: float, reward: float) -> None:
        """Learn what ``arm`` brought, given the features as they were when it was chosen. The reward must be finite."""
        phi = self._phi(features)
        self._standardizer.observe(features)
        self._scale.observe(reward)
        self._arms.setdefault(arm, self._new_arm()).observe(phi, reward / self._scale.value)

    def _new_arm(self) -> RecursiveLeastSquares:
        prior = torch.cat([torch.ones(1), torch.full((FEATURES,), FEATURES**-0.5)])
        return RecursiveLeastSquares(prior, noise=1.0, memory=self._MEMORY)

    def _phi(self, features: Sequence[float]) -> torch.Tensor:
        return torch.cat([torch.ones(1, dtype=torch.float64), self._standardizer(features)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "standardizer": self._standardizer.state_dict(),
            "scale": self._scale.state_dict(),
            "arms": {arm: model.state_dict() for arm, model in self._arms.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standardizer.load_state_dict(state["standardizer"])
        self._scale.load_state_dict(state["scale"])
        self._arms = {}
        for arm, model in state["arms"].items():
            self._arms[arm] = self._new_arm()
            self._arms[arm].load_state_dict(model)
