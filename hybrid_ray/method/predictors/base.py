"""The base class of predictors. ``tests/unit/reference_predictors.py`` has a slow reference of each predictor."""

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
    """Computes one displacement D of the weights from the effect of real steps, and applies it in parts.

    The real steps of a run are grouped in *windows*: consecutive real steps without a predicted step between them. The
    trainer calls `open_window` before the first and `close_window` after the last real step of each window; between
    them the predictor does no work, unless it takes gradients (`observe`). `plan` fixes D for a horizon of H steps,
    `step` adds D/H to the weights, and `withdraw` subtracts what was added.

    A subclass must define `write_direction`, and may define:

    - ``Options``: a frozen dataclass with a default for each option of ``hybrid.predictor``; read as ``self.options``.
    - `prepare`: allocates buffers (`add_buffers`). Nothing else of the model's size may be kept between steps.
    - `initial_numbers`: its counters and sums, which become attributes. The buffers and these numbers are its whole
      state: `reset` restores their first values, and checkpoints contain them.
    - `open_window`, `close_window`, `observe`: update the state from real steps.

    Args:
        weights: the parameters.
        optimizer: the optimizer of these parameters; a predictor may read its state.
        config: the settings of the method.
        options: an instance of ``Options``.
        total_steps: nominal steps of the run, if they are known.
        seed: of random numbers (noise, stochastic rounding).
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
        self.horizon = 1  # of the last planned displacement
        self.reverse = False  # a control: D points the other way and has the recorded length
        self.applied = 0  # number of its H parts that are now in the weights
        self.window_open = False
        self._all_buffers: dict[str, Buffers] = {}
        self.direction = self.add_buffers("direction") if self.moves else None
        self.prepare()
        self._set_numbers(self.initial_numbers())

    moves = True  # False if D is always zero and needs no buffer
    needs_total_steps = False  # whether the length of the run must be known

    takes_gradients = False  # whether the trainer must call `observe`
    # Whether D/H is a forecast of a real step. If not, the length of D does not depend on the horizon, and a
    # difference between D/H and later real steps is not a prediction error.
    forecasts = True

    def prepare(self) -> None:  # noqa: B027 - a predictor may need nothing
        """Allocate buffers. Raise `ConfigError` if the optimizer or the options can't be used."""

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        """Names and first values of the numbers, or lists of numbers, that belong to the state."""
        return {}

    def add_buffers(self, name: str) -> Buffers:
        """Allocate one number per coordinate of the model, initially zero, with the job's buffer device and dtype."""
        config, seed = self.config, self.seed + len(self._all_buffers)
        made = Buffers(self.weights, dtype=config.buffer_dtype, device=config.buffer_device, seed=seed)
        self._all_buffers[name] = made
        return made

    def open_window(self) -> None:
        """Called before the first real step of a window."""
        self.window_open = True

    def close_window(self, steps: int) -> None:
        """Called after the last real step of a window, which had ``steps`` (>= 0) real steps."""
        self.window_open = False

    def observe(  # noqa: B027 - most have no use for it
        self, gradients: Sequence[torch.Tensor | None], *, rates: Sequence[float], progress: float
    ) -> None:
        """Called just before a real step is applied, but only if ``takes_gradients`` is True.

        Args:
            gradients: this rank's part, one per parameter, as the optimizer gets them; None if there is none.
            rates: the learning rate of the step, one per parameter group.
            progress: the share of the run that is done after this step, in [0, 1]; 0 if its length is not known.
        """

    @abstractmethod
    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        """Write D. See `plan`."""

    def plan(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        """Compute D. The previous D can't be withdrawn any more.

        If the learning rate changes, this is called again before anything else happens: with only the factors changed,
        D must be the same except for the factors.

        Args:
            horizon: steps over which D is applied.
            factors: one per parameter group: D is multiplied by it (coupling to the learning rate, corrections).
            norms: one per parameter group: the required length of D, for controls that replay a run.
        """
        self.horizon, self.applied = horizon, 0
        if self.direction is not None:
            self.write_direction(horizon, [factors[group] for group in self.weights.group_of], norms)
            if self.reverse:
                assert norms is not None
                self.rescale([-norm for norm in norms])

    def squares(self) -> torch.Tensor:
        """|D|^2 of each parameter group: this rank's contribution to the sum over ranks."""
        if self.direction is None:
            return torch.zeros(self.weights.groups, device=self.weights.device)
        return torch.stack(self.weights.by_group(self.direction.squares()))

    def step(self) -> None:
        """One predicted step: w += D/H, in place."""
        if self.direction is not None:
            self.direction.add_to(self.weights.local(), 1.0 / self.horizon)
        self.applied += 1

    def withdraw(self) -> None:
        """Undo all predicted steps since `plan`, in place; real steps made between them stay."""
        if self.direction is not None and self.applied:
            self.direction.add_to(self.weights.local(), -self.applied / self.horizon)
        self.applied = 0

    def reset(self) -> None:
        """Restore the initial state, without new allocations. No window may be open."""
        for buffers in self._all_buffers.values():
            buffers.zero_()
        self.horizon, self.applied, self.window_open = 1, 0, False
        self._set_numbers(self.initial_numbers())

    @property
    def fraction(self) -> float:
        """The share of D that is now in the weights."""
        return self.applied / self.horizon

    @property
    def bytes_per_parameter(self) -> float:
        """Extra bytes per parameter on the model's device, without buffers on the host."""
        return self._bytes_on(self.weights.device)

    @property
    def host_bytes_per_parameter(self) -> float:
        """Extra bytes per parameter in host memory; 0 unless ``buffer_device`` is ``host``."""
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
