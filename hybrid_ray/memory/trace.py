"""The steps of a run, taken with fake tensors: shapes and storages, no numbers and no memory.

The model, the optimizer and the trainer are the real ones; so what they allocate is found, not assumed, and stays
found when they change. PyTorch's own ``FakeTensorMode`` does the work. Every run is traced as on a CPU, whatever its
device: a build of PyTorch without CUDA can fake no GPU.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_ray.config import RunConfig
from hybrid_ray.data import Dataset
from hybrid_ray.memory.allocation_log import AllocationLog
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.trainer import HybridTrainer
from hybrid_ray.models import GPT2, build_model
from hybrid_ray.models.gpt2 import Attention, build_gpt2
from hybrid_ray.optim import AdamWPrune, build_optimizer
from hybrid_ray.run_result import Replay

__all__ = ["Batches", "Numbers", "trace"]

_PARTS = {"forward": "activations", "backward": "activations", "overhead": "predictor", "predict": "predictor"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """What data look like: how many values a target can take; the shapes of a micro-batch and of a held-out batch."""

    classes: int
    inputs: torch.Size
    targets: torch.Size
    dtype: torch.dtype  # of the inputs
    heldout_inputs: torch.Size
    heldout_targets: torch.Size

    @classmethod
    def of(cls, run: RunConfig, data: Dataset) -> Self:
        """As a worker of the run reads them."""
        length = run.train.sequence_length
        x, y = data.sampler(batch_size=1, sequence_length=length, seed=run.seed).next()
        heldout_x, heldout_y = next(iter(data.stretches("val", sequence_length=length)))
        return cls(
            classes=data.classes,
            inputs=torch.Size((run.micro_batch_size, *x.shape[1:])),
            targets=torch.Size((run.micro_batch_size, *y.shape[1:])),
            dtype=x.dtype,
            heldout_inputs=heldout_x.shape,
            heldout_targets=heldout_y.shape,
        )


class Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers 1 wherever Python asks a fake tensor for a number, and draws nothing: a loss of 1, a norm of 1."""

    _DRAWS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func in self._DRAWS:
            return args[0]
        return func(*args, **(kwargs or {}))


class _Moments(StepClock):
    """Tells the log what the trainer is doing, by the trainer's own names."""

    def __init__(self, log: AllocationLog) -> None:
        super().__init__(torch.device("cpu"))
        self._log = log

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        with self._log.moment(name, _PARTS.get(name, "temporaries")):
            yield


def trace(run: RunConfig, batches: Batches, *, layers: int | None = None) -> AllocationLog:
    """One real step of a run with its optimizer's state there, one predicted step, and one held-out batch.

    With several micro-batches a step the gradients of those before the last are there all along. The parts are weights,
    gradients, optimizer, predictor (those of its buffers that a GPU leaves to the host: host), activations, logits and
    temporaries. Forward and backward are parted into what is before the blocks, the first block, those between, the
    last one, and what is after.

    Args:
        layers: of a GPT-2, where not its preset's.
    """
    table = batches.classes, -(-batches.classes // run.model.pad_vocab_to) * run.model.pad_vocab_to
    log = AllocationLog(lambda tensor: "logits" if tensor.ndim == 2 and tensor.shape[1] in table else None)
    numbers = Numbers()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), FakeTensorMode(), log, numbers:
        warnings.simplefilter("ignore")  # of the order of schedules, of a scheduler never stepped
        with log.moment("model", "weights"):
            model = _model(run, batches.classes, layers)
            if run.train.device == "cuda":
                _as_on_gpu(model, run)
        optimizer = build_optimizer(model, run.train)
        trainer = _trainer(run, model, optimizer, log)
        _first_update(optimizer, log)
        _mark(model, log)
        batch = torch.empty(batches.inputs, dtype=batches.dtype), torch.empty(batches.targets, dtype=torch.long)
        trainer.step(_closure(run, model, optimizer, batch, log))
        if run.hybrid.predictor != "none":
            trainer.step(lambda: batch[0])  # a predicted step asks for no loss
        with log.moment("evaluation", "activations"), torch.no_grad(), _precision(run):
            heldout = torch.empty(batches.heldout_inputs, dtype=batches.dtype)
            model.eval()(heldout, torch.empty(batches.heldout_targets, dtype=torch.long))
    return log


def _model(run: RunConfig, classes: int, layers: int | None) -> nn.Module:
    length, usual = run.train.sequence_length, torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if run.train.weights == "bf16" else usual)
    try:
        if layers is None:
            return build_model(run.model, vocab_size=classes, sequence_length=length)
        return build_gpt2(run.model, vocab_size=classes, sequence_length=length, layers=layers)
    finally:
        torch.set_default_dtype(usual)


def _as_on_gpu(model: nn.Module, run: RunConfig) -> None:
    """What a GPU does otherwise than a CPU: attention with dropout is fused too, and autocast norms in fp32."""
    rate = run.model.dropout
    for module in model.modules():
        if isinstance(module, Attention) and rate:
            module.dropout = 0.0
            module.register_forward_hook(
                lambda _, inputs, output: F.dropout(output, rate) if output.requires_grad else output
            )
        if isinstance(module, nn.LayerNorm) and run.train.precision == "bf16" and run.train.weights == "bf16":
            module.weight, module.bias = (nn.Parameter(part.float()) for part in (module.weight, module.bias))
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].float())


def _mark(model: nn.Module, log: AllocationLog) -> None:
    """Have the log told what a gradient is, and where in the model forward and backward are."""
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: log.claim([p.grad], "gradients"))  # type: ignore[no-untyped-call]
    if not isinstance(model, GPT2):
        return
    last = len(model.h) - 1

    def place(number: int) -> str:
        return "first" if number == 0 else "last" if number == last else "between"

    def enter(number: int, inputs: tuple[Tensor, ...]) -> None:
        if number == 0 and inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: log.at("before"))  # type: ignore[no-untyped-call]
        log.at(place(number))

    def leave(number: int, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: log.at(place(number)))  # type: ignore[no-untyped-call]
        if number == last:
            log.at("after")

    for number, block in enumerate(model.h):
        block.register_forward_pre_hook(lambda _, inputs, number=number: enter(number, inputs))
        block.register_forward_hook(lambda _, inputs, output, number=number: leave(number, output))


def _trainer(run: RunConfig, model: nn.Module, optimizer: Optimizer, log: AllocationLog) -> HybridTrainer:
    """The run's trainer, told to take one real step and one predicted one."""
    settings = replace(
        run.hybrid,
        accumulate=min(2, run.accumulate),
        clip_norm=run.train.clip_norm,
        total_steps=run.train.steps,
        seed=run.seed,
    )
    replay = Replay(phases="FP", norms=((1.0,) * len(optimizer.param_groups),))
    with log.moment("trainer", "predictor"):
        trainer = HybridTrainer(model, optimizer, settings, replay=replay)
    trainer.clock = _Moments(log)
    if run.hybrid.predictor != "none" and run.hybrid.buffer_device == "host" and run.train.device == "cuda":
        for buffers in trainer.state_dict()["parts"]["cycle"]["predictor"]["buffers"]:
            log.claim(buffers["tensors"], "host")
    return trainer


def _first_update(optimizer: Optimizer, log: AllocationLog) -> None:
    """An optimizer makes its state at its first step; pruning makes its masks later, here at once."""
    if isinstance(optimizer, AdamWPrune):
        optimizer.prune_every, optimizer.start, optimizer.end = 1, 0, 1
    with log.moment("optimizer", "temporaries"):
        _hold_gradients(optimizer, log)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():
        log.claim((value for value in state.values() if isinstance(value, Tensor)), "optimizer")


def _hold_gradients(optimizer: Optimizer, log: AllocationLog) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
            log.claim([parameter.grad], "gradients")


def _closure(
    run: RunConfig, model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor], log: AllocationLog
) -> Callable[[], Tensor]:
    """The loss of the last micro-batch. The one before, if any, has nothing but left its gradients."""
    before = iter(range(min(2, run.accumulate) - 1))

    def closure() -> Tensor:
        if next(before, None) is not None:
            _hold_gradients(optimizer, log)
            return next(model.parameters()).sum()
        with log.moment("forward", "activations"), _precision(run):
            loss: Tensor = model(*batch)
        return loss

    return closure


def _precision(run: RunConfig) -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if run.train.precision == "bf16" else contextlib.nullcontext()
