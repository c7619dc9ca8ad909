"""The steps of a run, taken with fake tensors: shapes and storages, no numbers and no memory.

The model, the optimizer and the trainer are the real ones; so what they allocate is found, not assumed, and stays
found when they change. PyTorch's own ``FakeTensorMode`` does the work. Every run is traced as on a CPU, whatever its
device: a build of PyTorch without CUDA can fake no GPU.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hybrid_ray.config import RunConfig
from hybrid_ray.memory.allocation_log import AllocationLog
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.trainer import HybridTrainer
from hybrid_ray.models.gpt2 import Attention
from hybrid_ray.optim import AdamWPrune
from hybrid_ray.run_result import Replay
from hybrid_ray.tasks.load import optimizer_of
from hybrid_ray.tasks.task import AUTOCAST, Batch, Task

__all__ = ["Batches", "Numbers", "trace"]

_PARTS = {"forward": "activations", "backward": "activations", "overhead": "predictor", "predict": "predictor"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """A task, and what its batches look like: a micro-batch, and one of an evaluation. Equal where the memory is."""

    shapes: str  # of both, and their types
    classes: int | None
    task: Task = field(compare=False)
    training: Batch = field(compare=False)  # of meta tensors, which have no data
    heldout: Batch = field(compare=False)

    @classmethod
    def of(cls, run: RunConfig, task: Task) -> Self:
        """As a worker of the run reads them."""
        training = _shapes(task.sampler(batch_size=run.micro_batch_size, seed=run.seed).next())
        heldout = _shapes(next(iter(task.stretches("val"))))
        leaves = [
            (tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else type(leaf).__name__
            for leaf in tree_leaves((training, heldout))
        ]
        return cls(shapes=repr(leaves), classes=task.classes, task=task, training=training, heldout=heldout)


def _shapes(batch: Batch) -> Batch:
    return tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, batch)


def _faked(batch: Batch) -> Batch:
    """Tensors of these shapes, under the fake mode that is on."""
    return tree_map(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, batch)


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
        layers: equal blocks of the model, where not as many as it has.
    """
    task, classes, padded = batches.task, batches.classes or 0, run.model.pad_vocab_to
    table = (classes, -(-classes // padded) * padded) if classes else ()
    log = AllocationLog(lambda tensor: "logits" if tensor.ndim == 2 and tensor.shape[1] in table else None)
    numbers = Numbers()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), FakeTensorMode(), log, numbers:
        warnings.simplefilter("ignore")  # of the order of schedules, of a scheduler never stepped
        with log.moment("model", "weights"):
            model = _model(run, task, layers)
            if run.train.device == "cuda":
                _as_on_gpu(model, run)
        optimizer = optimizer_of(task, model, run.optimizer_settings)
        trainer = _trainer(run, model, optimizer, log)
        _first_update(optimizer, log)
        _mark(model, task, log)
        batch = _faked(batches.training)
        trainer.step(_closure(run, lambda: task.loss(model, batch), model, optimizer, log))
        if run.hybrid.predictor != "none":
            trainer.step(lambda: torch.empty(()))  # a predicted step asks for no loss
        with log.moment("evaluation", "activations"), torch.no_grad(), _precision(run):
            task.loss(model.eval(), _faked(batches.heldout))
    return log


def _model(run: RunConfig, task: Task, layers: int | None) -> nn.Module:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if run.train.weights == "bf16" else usual)
    try:
        return task.build_model() if layers is None else task.build_shallow(layers)
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


def _mark(model: nn.Module, task: Task, log: AllocationLog) -> None:
    """Have the log told what a gradient is, and where in the model forward and backward are."""
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: log.claim([p.grad], "gradients"))  # type: ignore[no-untyped-call]
    blocks = task.blocks(model)
    last = len(blocks) - 1

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

    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, inputs, number=number: enter(number, inputs))
        block.register_forward_hook(lambda _, inputs, output, number=number: leave(number, output))


def _trainer(run: RunConfig, model: nn.Module, optimizer: Optimizer, log: AllocationLog) -> HybridTrainer:
    """The run's trainer, told to take one real step and one predicted one."""
    replay = Replay(phases="FP", norms=((1.0,) * len(optimizer.param_groups),))
    with log.moment("trainer", "predictor"):
        trainer = HybridTrainer(
            model,
            optimizer,
            run.hybrid,
            total_steps=run.train.steps,
            accumulate=min(2, run.accumulate),
            clip_norm=run.train.clip_norm,
            seed=run.seed,
            replay=replay,
        )
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
    run: RunConfig, loss_of_batch: Callable[[], Tensor], model: nn.Module, optimizer: Optimizer, log: AllocationLog
) -> Callable[[], Tensor]:
    """The loss of the last micro-batch. The one before, if any, has nothing but left its gradients."""
    before = iter(range(min(2, run.accumulate) - 1))

    def closure() -> Tensor:
        if next(before, None) is not None:
            earlier = next(model.parameters()).sum()
            earlier.register_hook(lambda _: _hold_gradients(optimizer, log))  # type: ignore[no-untyped-call]
            return earlier
        with log.moment("forward", "activations"), _precision(run):
            return loss_of_batch()

    return closure


def _precision(run: RunConfig) -> AbstractContextManager[object]:
    dtype = AUTOCAST[run.train.precision]
    return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)
