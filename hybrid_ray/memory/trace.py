"""Traces the steps of a run with fake tensors, which have shapes and storages but no values and no memory.

Model, optimizer and trainer are the real ones, so their allocations are measured, and stay right when they change.
PyTorch's ``FakeTensorMode`` does the work. Every run is traced as on a CPU, since a PyTorch build without CUDA cannot
fake a GPU.
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
from hybrid_ray.config.named import one_sentence
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
    """A task with the shapes of a training micro-batch and of an evaluation batch.

    Two are equal if their shapes and classes are: then their memory is equal too.
    """

    shapes: str  # shapes and types of both batches
    classes: int | None
    task: Task = field(compare=False)
    training: Batch = field(compare=False)  # meta tensors, which have no data
    heldout: Batch = field(compare=False)

    @classmethod
    def of(cls, run: RunConfig, task: Task) -> Self:
        """The batches that one worker of the run reads."""
        with one_sentence(f"reading a batch of {type(task).__name__}'s data"):
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
    """Tensors of these shapes, fake under an active ``FakeTensorMode``."""
    return tree_map(lambda leaf: torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf, batch)


class Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Returns 1 wherever Python reads a number from a fake tensor, such as a loss or a norm, and skips random draws."""

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
    """A step clock that passes the names of the trainer's parts on to the log."""

    def __init__(self, log: AllocationLog) -> None:
        super().__init__(torch.device("cpu"))
        self._log = log

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        with self._log.moment(name, _PARTS.get(name, "temporaries")):
            yield


def trace(run: RunConfig, batches: Batches, *, layers: int | None = None) -> AllocationLog:
    """Trace one real step (with the optimizer's state allocated), one predicted step and one held-out batch.

    If gradients are accumulated, those of the earlier micro-batches exist throughout the step. The parts are weights,
    gradients, optimizer, predictor (or host, for buffers that a GPU run keeps in host memory), activations, logits and
    temporaries. Forward and backward are split into moments: before the blocks, in the first, in those between, in the
    last, and after the blocks.

    Args:
        layers: number of blocks of the traced model; None: as many as the run's.
    """
    task, classes, padded = batches.task, batches.classes or 0, run.model.pad_vocab_to
    table = (classes, -(-classes // padded) * padded) if classes else ()
    log = AllocationLog(lambda tensor: "logits" if tensor.ndim == 2 and tensor.shape[1] in table else None)
    numbers = Numbers()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(), FakeTensorMode(), log, numbers:
        warnings.simplefilter("ignore")  # about a learning-rate scheduler that is never stepped
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
        if run.hybrid.predictor.name != "none":
            trainer.step(lambda: torch.empty(()))  # a predicted step does not call it
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
    """Imitate a GPU where it differs from a CPU: fused attention with dropout, and layer norms in fp32 by autocast."""
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
    """Add hooks that claim gradients, and that tell the log which block forward and backward are in."""
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
    """The run's trainer, set up to take one real step and then one predicted step."""
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
    if run.hybrid.predictor.name != "none" and run.hybrid.buffer_device == "host" and run.train.device == "cuda":
        for buffers in trainer.state_dict()["parts"]["cycle"]["predictor"]["buffers"].values():
            log.claim(buffers["tensors"], "host")
    return trainer


def _first_update(optimizer: Optimizer, log: AllocationLog) -> None:
    """Allocate the optimizer's state, which its first step does, and the pruning masks, which come later in a run."""
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
    """The closure of a real step. Of two micro-batches, the first only allocates gradients; the last runs the model."""
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
