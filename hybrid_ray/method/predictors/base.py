"""What every predictor does. One file a predictor; ``tests/unit/reference_predictors.py`` has the slow twins."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.predictors.buffers import Buffers
from hybrid_ray.method.ranks import sum_over_ranks
from hybrid_ray.method.weights import Weights

__all__ = ["Predictor"]


class Predictor(ABC):
    """Turns what real steps did to the weights into one displacement D, and applies it in parts.

    The real steps of a run fall into *windows*: stretches without a predicted step between. The trainer calls
    `open_window` before the first and `close_window` after the last real step of each; inside, nothing is done at all.
    `plan` fixes D for a horizon of H steps, `step` adds D/H to the weights, `withdraw` takes back what was added.

    Args:
        weights: the parameters.
        config: the predictor's settings.
        seed: of what is drawn: noise, rounding.
    """

    def __init__(self, weights: Weights, config: HybridConfig, *, seed: int = 0) -> None:
        self.weights = weights
        self.config = config
        self._seed = seed
        self.horizon = 1  # of the displacement planned last
        self.applied = 0  # how many of its parts the weights have now
        self.direction = self._buffers() if self._moves else None
        self.window_open = False

    _moves = True  # False: D is always zero and needs no buffer

    takes_gradients = False  # whether `observe` is to be called
    # Whether D/H foretells what a real step will do. If not, the horizon does not set the length of D, and how far real
    # steps then differ from it is no error.
    forecasts = True

    def open_window(self) -> None:
        """Real steps begin."""
        self.window_open = True

    def close_window(self, steps: int) -> None:
        """``steps`` real steps (>= 0) were done since the window opened."""
        self.window_open = False

    def observe(  # noqa: B027 - most have no use for it
        self, gradients: Sequence[torch.Tensor | None], *, rates: Sequence[float], progress: float
    ) -> None:
        """A real step is about to be applied. Called only where ``takes_gradients``.

        Args:
            gradients: this rank's part, one a parameter, as the optimizer gets them; None where there is none.
            rates: the learning rate of the step, one a parameter group.
            progress: the share of the run that is done with this step, in [0, 1]; 0 if its length is not known.
        """

    @abstractmethod
    def _write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        """Write D. See `plan`."""

    def plan(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        """Fix D. The one before can't be withdrawn any more.

        Called again before anything else happens if the learning rate was changed: with other factors alone, the same D
        must come out but for them.

        Args:
            horizon: steps over which D is applied.
            factors: one a parameter group: how much of its D (the coupling to the learning rate, corrections).
            norms: one a parameter group: the length D is to have, for controls that replay a run.
        """
        self.horizon, self.applied = horizon, 0
        if self.direction is not None:
            self._write_direction(horizon, [factors[group] for group in self.weights.group_of], norms)

    def squares(self) -> torch.Tensor:
        """|D|^2 of each parameter group: this rank's part of the sum over ranks."""
        if self.direction is None:
            return torch.zeros(self.weights.groups, device=self.weights.device)
        return torch.stack(self.weights.by_group(self.direction.squares()))

    def step(self) -> None:
        """One predicted step: w += D/H, in place."""
        if self.direction is not None:
            self.direction.add_to(self.weights.local(), 1.0 / self.horizon)
        self.applied += 1

    def withdraw(self) -> None:
        """Take back all predicted steps since `plan`, in place; the real steps between stay."""
        if self.direction is not None and self.applied:
            self.direction.add_to(self.weights.local(), -self.applied / self.horizon)
        self.applied = 0

    def reset(self) -> None:
        """Forget all windows. Buffers stay where they are. The window must be closed."""
        for buffers in self._all_buffers():
            buffers.zero_()
        for name, value in self._numbers().items():
            setattr(self, name, type(value)(0))
        self.horizon = 1

    @property
    def fraction(self) -> float:
        """How much of D the weights have now."""
        return self.applied / self.horizon

    @property
    def bytes_per_parameter(self) -> float:
        """Extra bytes a parameter on the model's device. Buffers on the host count nothing."""
        return self._bytes_on(self.weights.device)

    @property
    def host_bytes_per_parameter(self) -> float:
        """Extra bytes a parameter in host memory, if buffers were asked to live there."""
        return self._bytes_on(None)

    def _bytes_on(self, device: torch.device | None) -> float:
        on_host = self.config.buffer_device == "host"
        if on_host == (device is not None):
            return 0.0
        tensors = [tensor for buffers in self._all_buffers() for tensor in buffers.tensors]
        coordinates = sum(tensor.numel() for tensor in self.weights.local())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / coordinates

    def _all_buffers(self) -> list[Buffers]:
        return [value for value in vars(self).values() if isinstance(value, Buffers)]

    def _buffers(self, number: int = 0) -> Buffers:
        config = self.config
        return Buffers(self.weights, dtype=config.buffer_dtype, device=config.buffer_device, seed=self._seed + number)

    def _rescale(self, norms: Sequence[float]) -> None:
        """Give D the length ``norms`` in each parameter group, over all ranks; a zero D stays zero."""
        assert self.direction is not None
        now = sum_over_ranks(self.squares())
        ratios = [norm / square**0.5 if square > 0.0 else 0.0 for norm, square in zip(norms, now, strict=True)]
        self.direction.multiply_([ratios[group] for group in self.weights.group_of])

    def state_dict(self) -> dict[str, Any]:
        return {"numbers": self._numbers(), "buffers": [buffers.state_dict() for buffers in self._all_buffers()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state["numbers"].items():
            setattr(self, name, value)
        for buffers, saved in zip(self._all_buffers(), state["buffers"], strict=True):
            buffers.load_state_dict(saved)

    def _numbers(self) -> dict[str, int | float]:
        """Counters and sums: every number kept as a public attribute starts at 0, ``horizon`` at 1."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (int, float)) and not name.startswith("_")
        }
