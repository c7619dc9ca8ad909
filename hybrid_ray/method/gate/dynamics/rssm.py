"""The recurrent dynamics model: an ensemble of small RSSMs (Hafner et al., arXiv 1811.04551; discrete: 2010.02193)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hybrid_ray.method.gate.dynamics.base import FEATURES, Forecast, bounded
from hybrid_ray.method.gate.dynamics.replay import ReplayBuffer
from hybrid_ray.method.gate.dynamics.standardizer import RunningScale, Standardizer

__all__ = ["RSSMDynamics"]

_MEMBERS, _HIDDEN = 3, 32
_VARIABLES, _CLASSES = 8, 8
_STATE = _VARIABLES * _CLASSES
_UNIT = 0.01  # what a jump may change, before any data: an output of 1
_BUFFER, _BATCH, _LENGTH, _AHEAD = 256, 8, 8, 3  # cycles; sequences; cycles of one; cycles of a training rollout
_EVERY, _RATE = 4, 3e-3  # cycles between two steps of Adam
_SAMPLES = 16  # of a rollout
_UNIFORM = 0.01  # share of the uniform distribution in every categorical
_REGRET = 0.1  # weight of the divergence of posterior and prior
_BALANCE = 0.8  # share of it that trains the prior

State = tuple[torch.Tensor, torch.Tensor]
"""Deterministic part h, (members, n, hidden); stochastic part s, (members, n, state): one-hot vectors, flattened."""


class RSSMDynamics:
    """Follows a run cycle by cycle in a latent state, and predicts by rollouts through the state's prior.

    One member::

        h_t+1 = GRU(h_t, [s_t, jump_t])               deterministic part
        prior      p(s_t | h_t)                       8 categorical variables of 8 classes
        posterior  q(s_t | h_t, x_t)                  x: the standardised features
        decoders   x_t from (h_t, s_t); outcome of cycle t from (h_t+1, s_t+1)

    The loss is the squared error of x_t, plus KL(q, p) with a balance of 0.8, plus that of the outcomes of the next 3
    cycles, predicted by rollouts that see no features of those cycles. Samples pass gradients straight through.

    Members differ in their initial weights, their batches, and a fixed random linear function that is added to
    their outcomes (randomized priors, Osband et al., arXiv 1806.03335): where there are no data they disagree by
    about 1 %. It takes hundreds of cycles to learn, since it takes few steps per cycle.

    Args:
        seed: of the weights, the batches and the samples.
    """

    def __init__(self, *, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._standardizer = Standardizer(FEATURES)
        self._spread = RunningScale(0.03, count=5)  # of errors, nearly all of it noise
        self._replay = ReplayBuffer(_BUFFER, FEATURES + 2)  # features, jump, outcome
        self._cycles = 0
        self._weights = {
            "gru_input": self._matrix(_STATE + 1, 3 * _HIDDEN),
            "gru_hidden": self._matrix(_HIDDEN, 3 * _HIDDEN),
            "prior": self._matrix(_HIDDEN, _STATE),
            "posterior": self._matrix(_HIDDEN + FEATURES, _STATE),
            "features": self._matrix(_HIDDEN + _STATE, FEATURES),
            "outcome": self._matrix(_HIDDEN + _STATE, 1) * 0.0,
        }
        self._weights = {name: weight.requires_grad_() for name, weight in self._weights.items()}
        self._adam = torch.optim.Adam(self._weights.values(), lr=_RATE, fused=True)
        level, slopes = torch.ones(1), torch.full((FEATURES,), FEATURES**-0.5)
        random = torch.randn(_MEMBERS, 2 * FEATURES + 2, generator=self._generator)
        random *= torch.cat([level, slopes, level, slopes])  # factors of 1, x, jump, jump x
        self._random = (random - random.mean(0))[..., None]
        self._noise = self._gumbel(_MEMBERS, _SAMPLES)  # one for all forecasts, so that jumps are compared fairly
        self._state = self._start(1)

    def forecast(self, features: Sequence[float], jump: float) -> Forecast:
        return self.rollout(features, [jump])[0]

    def effect(self, features: Sequence[float], jump: float) -> Forecast:
        with_jump, without = (self._members(features, [each])[0] for each in (jump, 0.0))
        return self._forecast(with_jump - without)

    def rollout(self, features: Sequence[float], jumps: Sequence[float]) -> list[Forecast]:
        """The expected outcomes of the coming cycles, if these jumps are made: each relative to its own trend."""
        return [self._forecast(members) for members in self._members(features, jumps)]

    @torch.no_grad()
    def _members(self, features: Sequence[float], jumps: Sequence[float]) -> list[torch.Tensor]:
        """What each member forecasts for the coming cycles."""
        x = self._standardizer(features).float().expand(_MEMBERS, _SAMPLES, -1)
        hidden = self._state[0].expand(-1, _SAMPLES, -1)
        state = hidden, self._sample(self._posterior(hidden, x), self._noise)
        found = []
        for jump in jumps:
            length = torch.full((_MEMBERS, _SAMPLES, 1), jump)
            state = self._imagine(state, length, self._noise)
            found.append((self._outcome(state) + self._fixed(x, length)).mean(1).double() * _UNIT)
        return found

    def _forecast(self, members: torch.Tensor) -> Forecast:
        std, mean = torch.std_mean(members)
        return Forecast(mean=float(mean), std=float(std), noise=self._spread.value)

    def observe(self, features: Sequence[float], jump: float, outcome: float) -> None:
        outcome = bounded(outcome)
        self._spread.observe(outcome - self.forecast(features, jump).mean)
        self._standardizer.observe(features)
        self._replay.add(torch.tensor([*features, jump, outcome]))
        self._cycles += 1
        if self._cycles % _EVERY == 0 and len(self._replay) >= _LENGTH + _AHEAD:
            self._train()
        with torch.no_grad():
            x = self._standardizer(features).float().expand(_MEMBERS, 1, -1)
            sample = self._sample(self._posterior(self._state[0], x), self._gumbel(_MEMBERS, 1))
            hidden = self._advance((self._state[0], sample), torch.full((_MEMBERS, 1, 1), jump))
        self._state = hidden, sample

    @torch.enable_grad()
    def _train(self) -> None:
        """One step of Adam on sequences of recent cycles; each member draws its own."""
        last = len(self._replay) - _LENGTH - _AHEAD + 1
        starts = torch.randint(last, (_MEMBERS, _BATCH, 1), generator=self._generator)
        rows = self._replay.take(starts + torch.arange(_LENGTH + _AHEAD))
        features, jumps, outcomes = torch.split(rows, [FEATURES, 1, 1], -1)  # (members, batch, cycles, ...)
        x = self._standardizer(features).float()
        outcomes = outcomes / _UNIT - self._fixed(x, jumps)[..., None]
        hidden, states, logits = self._start(_BATCH)[0], [], []
        for t in range(_LENGTH):
            logits.append(self._posterior(hidden, x[:, :, t]))
            states.append((hidden, self._sample(logits[-1], self._gumbel(_MEMBERS, _BATCH))))
            hidden = self._advance(states[-1], jumps[:, :, t])
        hiddens, samples = (torch.cat(parts, 1) for parts in zip(*states, strict=True))  # cycle by cycle
        loss = _divergence(torch.cat(logits, 1), self._prior(hiddens))
        seen = x[:, :, :_LENGTH].transpose(1, 2).flatten(1, 2)
        decoded = torch.cat([hiddens, samples], -1) @ self._weights["features"]
        loss = _REGRET * loss + F.mse_loss(decoded, seen)
        state = hiddens, samples
        for ahead in range(_AHEAD):
            span = slice(ahead, ahead + _LENGTH)
            length, target = (part[:, :, span].transpose(1, 2).flatten(1, 2) for part in (jumps, outcomes))
            state = self._imagine(state, length, self._gumbel(_MEMBERS, _LENGTH * _BATCH))
            error = (self._outcome(state) - target[..., 0]) * (_UNIT / self._spread.value)
            loss = loss + F.huber_loss(error, torch.zeros_like(error)) / _AHEAD
        self._adam.zero_grad()
        torch.autograd.backward(loss * _MEMBERS)
        self._adam.step()

    def _advance(self, state: State, jumps: torch.Tensor) -> torch.Tensor:
        """The next deterministic part."""
        hidden, sample = state
        from_input = torch.cat([sample, jumps], -1) @ self._weights["gru_input"]
        from_hidden = hidden @ self._weights["gru_hidden"]
        reset, update = torch.sigmoid((from_input + from_hidden)[..., : 2 * _HIDDEN]).chunk(2, -1)
        new = torch.tanh(from_input[..., 2 * _HIDDEN :] + reset * from_hidden[..., 2 * _HIDDEN :])
        return new + update * (hidden - new)

    def _imagine(self, state: State, jumps: torch.Tensor, noise: torch.Tensor) -> State:
        """The next state, drawn from the prior."""
        hidden = self._advance(state, jumps)
        return hidden, self._sample(self._prior(hidden), noise)

    def _prior(self, hidden: torch.Tensor) -> torch.Tensor:
        return _log_probabilities(hidden @ self._weights["prior"])

    def _posterior(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return _log_probabilities(torch.cat([hidden, x], -1) @ self._weights["posterior"])

    def _outcome(self, state: State) -> torch.Tensor:
        """What is learnt of the outcome, in `_UNIT`, shape (members, n)."""
        outcome: torch.Tensor = (torch.cat(state, -1) @ self._weights["outcome"])[..., 0]
        return outcome

    def _fixed(self, x: torch.Tensor, jumps: torch.Tensor) -> torch.Tensor:
        """The fixed random part of the outcome, same shape without the last dimension."""
        inputs = torch.cat([torch.ones_like(jumps), x, jumps, jumps * x], -1)
        outcome: torch.Tensor = inputs.reshape(_MEMBERS, -1, inputs.shape[-1]) @ self._random
        return outcome.reshape(inputs.shape[:-1])

    def _sample(self, log_probabilities: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """One-hot samples by the Gumbel-max trick, flattened; their gradient is that of the probabilities."""
        drawn = F.one_hot((log_probabilities + noise).argmax(-1), _CLASSES).float()
        probabilities = log_probabilities.exp()
        return (drawn + probabilities - probabilities.detach()).flatten(-2)

    def _gumbel(self, *shape: int) -> torch.Tensor:
        uniform = torch.rand((*shape, _VARIABLES, _CLASSES), generator=self._generator)
        exponential = -torch.log(uniform.clamp(1e-6, 1.0 - 1e-6))
        return torch.log(exponential).neg()

    def _matrix(self, inputs: int, outputs: int) -> torch.Tensor:
        normal = torch.randn((_MEMBERS, inputs, outputs), generator=self._generator)
        return normal.div_(inputs**0.5)

    def _start(self, count: int) -> State:
        return torch.zeros(_MEMBERS, count, _HIDDEN), torch.zeros(_MEMBERS, count, _STATE)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "standardizer": self._standardizer.state_dict(),
            "spread": self._spread.state_dict(),
            "replay": self._replay.state_dict(),
            "cycles": self._cycles,
            "weights": {name: weight.detach().clone() for name, weight in self._weights.items()},
            "adam": copy.deepcopy(self._adam.state_dict()),
            "random": self._random,
            "noise": self._noise,
            "state": self._state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._standardizer.load_state_dict(state["standardizer"])
        self._spread.load_state_dict(state["spread"])
        self._replay.load_state_dict(state["replay"])
        self._cycles = state["cycles"]
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state["weights"][name])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self._random, self._noise, self._state = state["random"], state["noise"], state["state"]


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of the variables' classes, shape (..., variables, classes), mixed with a little of the uniform distribution."""
    probabilities = logits.reshape(*logits.shape[:-1], _VARIABLES, _CLASSES).softmax(-1)
    return torch.log((1.0 - _UNIFORM) * probabilities + _UNIFORM / _CLASSES)


def _divergence(posterior: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """KL(posterior, prior), mean over states. It mostly moves the prior (2010.02193, section 2.2)."""

    def divergence(q: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (q.exp() * (q - p)).sum((-1, -2)).mean()

    return _BALANCE * divergence(posterior.detach(), prior) + (1 - _BALANCE) * divergence(posterior, prior.detach())
