"""The MLP dynamics model: a small ensemble, trained online on a replay buffer."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hybrid_ray.method.gate.dynamics.base import FEATURES, Forecast, bounded
from hybrid_ray.method.gate.dynamics.replay import ReplayBuffer
from hybrid_ray.method.gate.dynamics.standardizer import RunningScale, Standardizer

__all__ = ["MLPDynamics"]

_MEMBERS, _HIDDEN = 6, 16
_UNIT = 0.02  # what a jump may change, before any data: an output of 1
_BUFFER, _BATCH = 256, 64  # cycles
_STEPS = 2  # of Adam per cycle
_RATE = 1e-2
_SIZES = [(FEATURES + 1) * _HIDDEN, _HIDDEN, _HIDDEN * 2, 2]  # weights and biases of the two layers


class MLPDynamics:
    """outcome = f(x) + jump g(x, jump) with nets of 64 + 1 inputs, 16 tanh units and the two outputs f and g.

    Each member is a sample of the posterior: it starts at its own draw of the prior, is pulled back to it as Bayes'
    rule has it (anchored ensembles, Pearce et al., arXiv 1810.05546), and weighs every cycle by its own exponential
    weight (the Bayesian bootstrap). Members come in pairs of opposite first outputs, so the mean is 0 before
    any data.

    Args:
        seed: of the initial weights, the bootstrap and the batches.
    """

    def __init__(self, *, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._standardizer = Standardizer(FEATURES)
        self._spread = RunningScale(0.03, count=5)  # of errors, nearly all of it noise
        self._replay = ReplayBuffer(_BUFFER, FEATURES + 2 + _MEMBERS)  # features, jump, outcome, bootstrap weights
        first = self._draw(_MEMBERS // 2, FEATURES + 1, _HIDDEN) / (FEATURES + 1) ** 0.5
        last = self._draw(_MEMBERS // 2, _HIDDEN, 2) / _HIDDEN**0.5
        bias = self._draw(_MEMBERS // 2, 1, 2)
        draws = torch.cat([first, first]), torch.cat([last, -last]), torch.cat([bias, -bias])
        self._anchor = torch.zeros(_MEMBERS, sum(_SIZES))  # all weights of a member in one row
        weights = _parts(self._anchor)
        for part, draw in zip((weights[0], weights[2], weights[3]), draws, strict=True):
            part.copy_(draw)
        precisions = torch.tensor([FEATURES + 1.0, 1.0, float(_HIDDEN), 1.0])  # of the prior of each weight
        self._precision = precisions.repeat_interleave(torch.tensor(_SIZES))
        self._weights = self._anchor.clone().requires_grad_()
        self._adam = torch.optim.Adam([self._weights], lr=_RATE, betas=(0.9, 0.99), fused=True)

    def forecast(self, features: Sequence[float], jump: float) -> Forecast:
        return self._forecast(self._members(features, jump))

    def effect(self, features: Sequence[float], jump: float) -> Forecast:
        return self._forecast(self._members(features, jump) - self._members(features, 0.0))

    @torch.no_grad()
    def _members(self, features: Sequence[float], jump: float) -> torch.Tensor:
        """What each member forecasts, in `_UNIT`."""
        return self._outcomes(self._standardizer(features).float()[None], torch.tensor([jump]))[:, 0].double()

    def _forecast(self, members: torch.Tensor) -> Forecast:
        std, mean = torch.std_mean(members)
        return Forecast(mean=float(mean) * _UNIT, std=float(std) * _UNIT, noise=self._spread.value)

    def observe(self, features: Sequence[float], jump: float, outcome: float) -> None:
        outcome = bounded(outcome)
        self._spread.observe(outcome - self.forecast(features, jump).mean)
        self._standardizer.observe(features)
        shares = torch.empty(_MEMBERS).exponential_(generator=self._generator)
        self._replay.add(torch.cat([torch.tensor([*features, jump, outcome]), shares]))
        for _ in range(_STEPS):
            self._train()

    @torch.enable_grad()
    def _train(self) -> None:
        """One step of Adam on -log posterior / cycles, where the noise is as large as forecasts err."""
        count = len(self._replay)
        picked = torch.randint(count, (min(_BATCH, count),), generator=self._generator)
        features, jumps, outcomes, shares = torch.split(self._replay.take(picked), [FEATURES, 1, 1, _MEMBERS], 1)
        error = self._outcomes(self._standardizer(features).float(), jumps[:, 0]) - outcomes[:, 0] / _UNIT
        error = error * (_UNIT / self._spread.value)
        data = (
            (shares.T * torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")).mean(1).sum()
        )
        pull = (self._precision * (self._weights - self._anchor).square()).sum()
        self._adam.zero_grad()
        torch.autograd.backward(data + 0.5 * pull / count)
        self._adam.step()

    def _outcomes(self, features: torch.Tensor, jumps: torch.Tensor) -> torch.Tensor:
        """Outcomes in `_UNIT`, shape (members, n)."""
        first, bias, last, last_bias = _parts(self._weights)
        inputs = torch.cat([features, jumps[:, None]], 1)
        outputs: torch.Tensor = torch.tanh(inputs @ first + bias) @ last + last_bias
        return outputs[..., 0] + jumps * outputs[..., 1]

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "standardizer": self._standardizer.state_dict(),
            "spread": self._spread.state_dict(),
            "replay": self._replay.state_dict(),
            "anchor": self._anchor,
            "weights": self._weights.detach().clone(),
            "adam": copy.deepcopy(self._adam.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._standardizer.load_state_dict(state["standardizer"])
        self._spread.load_state_dict(state["spread"])
        self._replay.load_state_dict(state["replay"])
        self._anchor = state["anchor"]
        with torch.no_grad():
            self._weights.copy_(state["weights"])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))


def _parts(weights: torch.Tensor) -> list[torch.Tensor]:
    """Weights and biases of the two layers, of all members, as views."""
    shapes = (-1, _HIDDEN), (1, _HIDDEN), (_HIDDEN, 2), (1, 2)
    return [part.view(_MEMBERS, *shape) for part, shape in zip(torch.split(weights, _SIZES, 1), shapes, strict=True)]
