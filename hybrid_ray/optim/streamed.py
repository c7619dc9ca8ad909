"""Takes an optimizer's step one window of weights at a time, which bounds its temporary memory.

For an elementwise optimizer the order of updates does not matter. So each window of at most `PIECE` elements is
converted to fp32 on the model's device, updated by the optimizer's own code, and written back: bf16 weights with
stochastic rounding, state to where it is stored. State can be stored in host memory, which for Adam saves 8 bytes per
parameter on the device and costs a transfer of 8 bytes per parameter in each direction every step. Transfers use one
separate CUDA stream: a window is fetched while the previous one is updated. Host state is pinned, and PyTorch rounds
each pinned tensor up to a power of two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from hybrid_ray.optim.local import PIECE, local_part
from hybrid_ray.optim.rounding import Rounding, is_narrow

__all__ = ["Streamed", "StreamedAdam", "StreamedAdamW", "StreamedSGD", "loss_of"]

_DRAWS = "rounding_draws"  # stored in the first parameter group, so that it is saved and loaded with the state


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Elements ``start`` to ``stop`` of this rank's part of a parameter."""

    parameter: Tensor
    start: int
    stop: int
    size: int  # elements of this rank's part

    @property
    def whole(self) -> bool:
        return self.stop - self.start == self.size

    @property
    def last(self) -> bool:
        return self.stop == self.size

    def of(self, tensor: Tensor) -> Tensor:
        """These elements of a tensor that has the parameter's shape, sharing its memory."""
        return tensor if self.whole else tensor.view(-1)[self.start : self.stop]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """Pieces of one parameter group, with their state on the model's device."""

    group: dict[str, Any]
    pieces: Sequence[_Piece]
    states: Sequence[dict[str, Any]]
    newborn: Sequence[bool]  # True: the parameter had no state before this step
    fetched: "torch.cuda.Event | None"  # fires when the states have arrived; None: they needed no transfer


class Streamed(Optimizer):
    """Mixin placed before a torch optimizer among a class's bases. It does nothing until `stream` is called.

    State is keyed by the parameters, in fp32, in the shape of this rank's part (plain shards with FSDP2, not DTensors).
    With fp32 weights the results are bit-identical to the plain optimizer's. State dicts are saved and loaded as usual.
    """

    _cuts = True  # whether a large parameter may be updated in pieces
    _window = PIECE
    _rounding: Rounding | None = None  # None: `stream` was not called
    _on_host = False
    _copies: "torch.cuda.Stream | None" = None

    def stream(self, *, state_device: Literal["model", "host"] = "model", seed: int = 0) -> None:
        """Step in windows from now on. Call it before the first step and before a state is loaded.

        Extra memory on the model's device, per element of a window (at most `PIECE`): with bf16 weights 8 bytes (weight
        and gradient in fp32), and 5 more while rounding; with state in host memory the state of three windows (one
        arriving, one being updated, one on its way back), for Adam 8 bytes each.

        Args:
            state_device: ``host`` stores state in host memory, pinned for a GPU. On a CPU it saves nothing.
            seed: for the rounding; must be the same on all ranks.
        """
        device = next(p for group in self.param_groups for p in group["params"]).device
        self._rounding = Rounding(device, seed)
        self._on_host = state_device == "host"
        if self._on_host and device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.param_groups[0].setdefault(_DRAWS, 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient. Returns what the closure returns."""
        loss = loss_of(closure)
        if self._rounding is None:
            super().step()
            return loss
        groups = self.param_groups
        self._rounding.draws = groups[0][_DRAWS]
        try:
            windows = self._windows()
            ahead = next(windows, None)
            while ahead is not None:
                window, ahead = ahead, next(windows, None)  # start fetching the next window, then update this one
                self._step_window(window)
        finally:
            self.param_groups = groups
        groups[0][_DRAWS] = self._rounding.draws
        if self._copies is not None:
            self._copies.synchronize()  # so that the state in host memory is complete for any reader
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict. The base class would cast the state to the weights' type and move it to their device."""
        if self._rounding is None:
            super().load_state_dict(state_dict)
            return
        super().load_state_dict({**state_dict, "state": {}})
        parameters = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        for number, saved in state_dict["state"].items():
            group, parameter = parameters[number]
            self.state[parameter] = {key: self._loaded(key, value, group, parameter) for key, value in saved.items()}

    def _loaded(self, key: str, value: Any, group: dict[str, Any], parameter: Tensor) -> Any:
        if not isinstance(value, Tensor):
            return value
        if key == "step":
            return value.to(parameter.device if group.get("fused") else "cpu", copy=True)
        home = self._home(value, parameter)
        home.copy_(local_part(value))
        return home

    def _home(self, like: Tensor, parameter: Tensor) -> Tensor:
        """Zeros for one tensor of a parameter's state, where state is stored."""
        return torch.zeros(
            local_part(parameter).shape,
            dtype=like.dtype,
            device="cpu" if self._on_host else parameter.device,
            pin_memory=self._copies is not None,
        )

    def _windows(self) -> Iterator[_Window]:
        """The windows of all parameters with a gradient. Each is yielded once the transfer of its state has started."""
        for group in self.param_groups:
            newborn = {parameter for parameter in group["params"] if not self.state.get(parameter)}
            pieces: list[_Piece] = []
            for piece in _cut([p for p in group["params"] if p.grad is not None], self._window, cuts=self._cuts):
                if pieces and sum(p.stop - p.start for p in pieces) + piece.stop - piece.start > self._window:
                    yield self._fetched(group, pieces, newborn)
                    pieces = []
                pieces.append(piece)
            if pieces:
                yield self._fetched(group, pieces, newborn)

    def _fetched(self, group: dict[str, Any], pieces: Sequence[_Piece], newborn: set[Tensor]) -> _Window:
        with self._copying():
            states = [{} if p.parameter in newborn else self._fetch(p) for p in pieces]
        born = [p.parameter in newborn for p in pieces]
        fetched = None if self._copies is None else self._copies.record_event()
        return _Window(group=group, pieces=pieces, states=states, newborn=born, fetched=fetched)

    def _copying(self) -> AbstractContextManager[object]:
        """The stream for transfers. (``torch.cuda.stream(None)`` would initialise CUDA in a run on the CPU.)"""
        return nullcontext() if self._copies is None else torch.cuda.stream(self._copies)

    def _fetch(self, piece: _Piece) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for key, value in self.state[piece.parameter].items():
            if not _is_elementwise(key, value):
                # Every piece increments the step count, so each gets a copy; a mask is only read.
                state[key] = value.clone() if key == "step" and isinstance(value, Tensor) and not piece.whole else value
            elif self._on_host:
                state[key] = piece.of(value).to(piece.parameter.device, non_blocking=True, copy=True)
            else:
                state[key] = piece.of(value)
        return state

    def _step_window(self, window: _Window) -> None:
        if window.fetched is not None:  # wait for this window's states only, not for those of the next one
            torch.cuda.current_stream(window.pieces[0].parameter.device).wait_event(window.fetched)
        surrogates = [_surrogate(piece) for piece in window.pieces]
        self.param_groups = [{**window.group, "params": surrogates}]
        for surrogate, state in zip(surrogates, window.states, strict=True):
            self.state[surrogate] = state
        super().step()
        for surrogate, piece in zip(surrogates, window.pieces, strict=True):
            target = piece.of(local_part(piece.parameter))
            if is_narrow(target):
                assert self._rounding is not None
                if piece.start == 0:
                    self._rounding.begin()
                self._rounding.write(target, surrogate)
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self._copies.device))
        with self._copying():
            for surrogate, piece, newborn in zip(surrogates, window.pieces, window.newborn, strict=True):
                self._keep(piece, self.state.pop(surrogate), moved=newborn or self._on_host)

    def _keep(self, piece: _Piece, state: dict[str, Any], *, moved: bool) -> None:
        """Store a piece's updated state; nothing to copy if it was updated in place."""
        kept = self.state[piece.parameter]
        for key, value in state.items():
            if not _is_elementwise(key, value):
                if piece.last:
                    kept[key] = value
                continue
            if key not in kept and piece.whole and not self._on_host:
                kept[key] = value
                continue
            if key not in kept:
                kept[key] = self._home(value, piece.parameter)
            if moved:
                piece.of(kept[key]).copy_(value, non_blocking=True)
                if self._copies is not None:
                    value.record_stream(self._copies)


class StreamedAdamW(Streamed, AdamW):
    """AdamW that can be streamed."""


class StreamedAdam(Streamed, Adam):
    """Adam that can be streamed."""


class StreamedSGD(Streamed, SGD):
    """SGD that can be streamed."""


def loss_of(closure: Callable[[], float] | None) -> float | None:
    """What a step's closure returns, called with gradients on; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _cut(parameters: Sequence[Tensor], longest: int, *, cuts: bool) -> Iterator[_Piece]:
    for parameter in parameters:
        local = local_part(parameter)
        size = local.numel()
        step = longest if cuts and local.is_contiguous() else max(1, size)
        for start in range(0, max(1, size), step):
            yield _Piece(parameter=parameter, start=start, stop=min(size, start + step), size=size)


def _surrogate(piece: _Piece) -> Tensor:
    """An fp32 tensor with gradient to update in place of the piece. If the piece is fp32 it shares its memory."""
    assert piece.parameter.grad is not None
    weight = piece.of(local_part(piece.parameter))
    surrogate = weight.float() if is_narrow(weight) else weight.view_as(weight)
    surrogate.grad = piece.of(local_part(piece.parameter.grad)).to(surrogate.dtype)
    return surrogate


def _is_elementwise(key: str, value: Any) -> bool:
    """Whether an entry of a state has one float per weight."""
    return isinstance(value, Tensor) and key != "step" and value.is_floating_point()
