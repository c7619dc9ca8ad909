"""The linear dynamics model: Bayesian recursive least squares that forgets slowly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybrid_ray.method.gate.dynamics.base import FEATURES, Forecast, bounded
from hybrid_ray.method.gate.dynamics.standardizer import Standardizer

__all__ = ["LinearDynamics", "RecursiveLeastSquares"]

_OUTLIER = 3.0  # standard deviations beyond which a residual counts as noisier
_NOISE_MEMORY = 100  # residuals that the estimate of the noise reaches back


class RecursiveLeastSquares:
    """y = <theta, phi> + noise, with a normal posterior of theta: a Kalman filter (Särkkä, Bayesian Filtering, ch. 4).

    theta drifts as an Ornstein-Uhlenbeck process whose stationary distribution is the prior N(0, P0)::

        theta <- a theta,  P <- a^2 P + (1 - a^2) P0,  a = exp(-1 / memory)       before each observation
        e = y - <theta, phi>,  S = <phi, P phi> + r
        theta <- theta + P phi e / S,  P <- P - P phi (P phi)' / S

    Directions that nothing excites return to the prior; with a plain forgetting factor their variance would grow
    without bound. The noise r is an average of its expectation given e. For a residual beyond 3 sqrt(S), S is raised by
    |e| / (3 sqrt(S)) (Huber's weight): one outlier then moves theta as far as one of 3 sqrt(S) does.

    Args:
        prior_std: standard deviation of each coefficient before any observation, shape (n,).
        noise: standard deviation of the noise before any observation; it counts as 3 observations.
        memory: observations after which what was learnt has faded to 1 / e.
    """

    def __init__(self, prior_std: torch.Tensor, *, noise: float, memory: float) -> None:
        self._prior = torch.diag(prior_std.double().square())
        self._decay = math.exp(-1.0 / memory)
        self.theta = torch.zeros(len(prior_std), dtype=torch.float64)
        self.covariance = self._prior
        self.noise = noise**2
        self.count = 3

    def forecast(self, phi: torch.Tensor) -> tuple[float, float]:
        """Mean and standard deviation of <theta, phi>."""
        variance = float(phi @ self.covariance @ phi)
        return float(self.theta @ phi), math.sqrt(max(0.0, variance))

    def observe(self, phi: torch.Tensor, outcome: float) -> None:
        square = self._decay**2
        theta = self._decay * self.theta
        covariance = square * self.covariance + (1.0 - square) * self._prior
        gain = covariance @ phi
        explained = float(phi @ gain)
        residual = outcome - float(theta @ phi)
        total = explained + self.noise
        excess = max(1.0, abs(residual) / (_OUTLIER * math.sqrt(total)))
        expected = (self.noise / total * residual / excess) ** 2 + explained * self.noise / total
        total *= excess
        self.theta = theta + gain * (residual / total)
        covariance = covariance - torch.outer(gain, gain) / total
        self.covariance = 0.5 * (covariance + covariance.T)  # rounding must not make it asymmetric
        self.count = min(self.count + 1, _NOISE_MEMORY)
        self.noise += (expected - self.noise) / self.count

    def state_dict(self) -> dict[str, Any]:
        return {"theta": self.theta, "covariance": self.covariance, "noise": self.noise, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)  # tensors are replaced, never written in place


class LinearDynamics:
    """outcome = f(x) + jump g(x) + jump^2 h, where f and g are affine in the standardised features x.

    g is what a decision needs: how the effect of a jump depends on the state of training. The prior says that a jump
    changes the loss by 0 +- 2 % on average and by +- 2 % depending on x, and that a measured outcome errs by 2 %.
    Where jumps are safe their effects are smaller (0.1 to 0.5 %, benchmarks/confidence.py). But a prior as narrow as
    that takes the outcome of a jump that is far too long for an outlier, and the run diverges.
    """

    _DRIFT = 0.01, 0.02  # prior standard deviations of f: at the average state, and over the states
    _EFFECT = 0.02, 0.02  # of g
    _CURVE, _NOISE = 0.01, 0.02
    _MEMORY = 1000.0  # cycles

    def __init__(self) -> None:
        affine = [
            torch.tensor([level] + [slopes / FEATURES**0.5] * FEATURES) for level, slopes in (self._DRIFT, self._EFFECT)
        ]
        prior = torch.cat([*affine, torch.tensor([self._CURVE])])
        self._standardizer = Standardizer(FEATURES)
        self._squares = RecursiveLeastSquares(prior, noise=self._NOISE, memory=self._MEMORY)

    def forecast(self, features: Sequence[float], jump: float) -> Forecast:
        return self._forecast(self._phi(features, jump))

    def effect(self, features: Sequence[float], jump: float) -> Forecast:
        return self._forecast(self._phi(features, jump) - self._phi(features, 0.0))

    def _forecast(self, phi: torch.Tensor) -> Forecast:
        mean, std = self._squares.forecast(phi)
        return Forecast(mean=mean, std=std, noise=math.sqrt(self._squares.noise))

    def observe(self, features: Sequence[float], jump: float, outcome: float) -> None:
        phi = self._phi(features, jump)  # as it was when the cycle was forecast
        self._standardizer.observe(features)
        self._squares.observe(phi, bounded(outcome))

    def _phi(self, features: Sequence[float], jump: float) -> torch.Tensor:
        affine = torch.cat([torch.ones(1, dtype=torch.float64), self._standardizer(features)])
        return torch.cat([affine, jump * affine, torch.tensor([jump**2], dtype=torch.float64)])

    def state_dict(self) -> dict[str, Any]:
        return {"standardizer": self._standardizer.state_dict(), "squares": self._squares.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._standardizer.load_state_dict(state["standardizer"])
        self._squares.load_state_dict(state["squares"])
