"""What every predictor does. One file a predictor; ``tests/unit/reference_predictors.py`` has the slow twins."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.config.predictors import NoOptions
from hybrid_ray.method.predictors.buffers import Buffers
from hybrid_ray.method.ranks import sum_over_ranks
from hybrid_ray.method.weights import Weights

__all__ = ["Number", "Predictor"]

Number: TypeAlias = int | float | bool


class Predictor(ABC):
    """Turns what real steps did to the weights into one displacement D, and applies it in parts.

    The real steps of a run fall into *windows*: stretches without a predicted step between. The trainer calls
    `open_window` before the first and `close_window` after the last real step of each; inside, nothing is done at all.
    `plan` fixes D for a horizon of H steps, `step` adds D/H to the weights, `withdraw` takes back what was added.

    A subclass writes `write_direction`, and what it needs of the rest:

    - ``Options``: a frozen dataclass with a default for each option of ``hybrid.predictor``; read as ``self.options``.
    - `prepare`: makes buffers (`add_buffers`). Nothing else about the model's size may be kept between steps.
    - `initial_numbers`: its counters and sums, which become attributes. Buffers and these numbers are its whole state:
      `reset` sets them back, checkpoints hold them.
    - `open_window`, `close_window`, `observe`: what it learns from real steps.

    Args:
        weights: the parameters.
        optimizer: theirs, at whose state a predictor may look.
        config: the settings of the method.
        options: an instance of ``Options``.
        total_steps: nominal steps of the run, if they are known.
        seed: of what is drawn: noise, rounding.
    """

    Options: ClassVar[type] = NoOptions

    def __init__(
        self,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        config: HybridConfig,
        options: Any,
        *,
        total_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.weights = weights
        self.optimizer = optimizer
        self.config = config
        self.options = options
        self.total_steps = total_steps
        self.seed = seed
        self.horizon = 1  # of the displacement planned last
        self.applied = 0  # how many of its parts the weights have now
        self.window_open = False
        self._all_buffers: dict[str, Buffers] = {}
        self.direction = self.add_buffers("direction") if self.moves else None
        self.prepare()
        self._set_numbers(self.initial_numbers())

    moves = True  # False: D is always zero and needs no buffer
    needs_total_steps = False  # whether it must know the length of the run

    takes_gradients = False  # whether `observe` is to be called
    # Whether D/H foretells what a real step will do. If not, the horizon does not set the length of D, and how far real
    # steps then differ from it is no error.
    forecasts = True

    def prepare(self) -> None:  # noqa: B027 - a predictor may need nothing
        """Make buffers. Raise `ConfigError` where the optimizer or the options can't work."""

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        """Names and first values of the numbers, or lists of numbers, that are state."""
        return {}

    def add_buffers(self, name: str) -> Buffers:
        """One number a coordinate of the model, zero at first, where and in the type that the job asks for."""
        config, seed = self.config, self.seed + len(self._all_buffers)
        made = Buffers(self.weights, dtype=config.buffer_dtype, device=config.buffer_device, seed=seed)
        self._all_buffers[name] = made
        return made

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
    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
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
            self.write_direction(horizon, [factors[group] for group in self.weights.group_of], norms)

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
        for buffers in self._all_buffers.values():
            buffers.zero_()
        self.horizon, self.applied, self.window_open = 1, 0, False
        self._set_numbers(self.initial_numbers())

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
        tensors = [tensor for buffers in self._all_buffers.values() for tensor in buffers.tensors]
        coordinates = sum(tensor.numel() for tensor in self.weights.local())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / coordinates

    def rescale(self, norms: Sequence[float]) -> None:
        """Give D the length ``norms`` in each parameter group, over all ranks; a zero D stays zero."""
        assert self.direction is not None
        now = sum_over_ranks(self.squares())
        ratios = [norm / square**0.5 if square > 0.0 else 0.0 for norm, square in zip(norms, now, strict=True)]
        self.direction.multiply_([ratios[group] for group in self.weights.group_of])

    def state_dict(self) -> dict[str, Any]:
        names = ("horizon", "applied", "window_open", *self.initial_numbers())
        return {
            "numbers": {name: copy.copy(getattr(self, name)) for name in names},
            "buffers": {name: buffers.state_dict() for name, buffers in self._all_buffers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set_numbers(state["numbers"])
        for name, buffers in self._all_buffers.items():
            buffers.load_state_dict(state["buffers"][name])

    def _set_numbers(self, numbers: Mapping[str, Number | list[Number]]) -> None:
        for name, value in numbers.items():
            setattr(self, name, copy.copy(value))
