"""Builds a run: the model on its device once per process, and trainer, optimizer and data for each start."""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hybrid_ray.config import RunConfig
from hybrid_ray.method.ranks import rank, world_size
from hybrid_ray.method.trainer import HybridTrainer
from hybrid_ray.optim import build_schedule
from hybrid_ray.run_result import Replay
from hybrid_ray.tasks.load import optimizer_of
from hybrid_ray.tasks.sampling import Sampler
from hybrid_ray.tasks.task import AUTOCAST, Batch, Objective, Task, batch_to
from hybrid_ray.training.compile import Compiled, compile_forward
from hybrid_ray.training.distributed import full_weights, load_weights, wrap

__all__ = ["TrainSetup", "Training", "synchronize"]

_log = logging.getLogger("hybrid_ray")
_LOOKED_AT = 32  # batches of the split ``decide``, kept in host memory


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work, so that wall time can be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What trains a run: trainer, optimizer and data. ``run`` may be a variant of the setup's without prediction."""

    run: RunConfig
    trainer: HybridTrainer
    optimizer: Optimizer
    sampler: Sampler

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])


class TrainSetup:
    """The model on its device, wrapped for all ranks and compiled if the run asks for it. Made once per process.

    Args:
        run: the run to set up.
        task: its model, data and loss.
        device: as `choose_device` returns it.

    Attributes:
        module: the model without wrappers, which is evaluated and saved.
        objective: model and loss, called with a batch: unwrapped, in DDP, or with a sharded model.
        model: the module whose parameters are trained: the model, or DDP, which reduces gradients.
        compiled: how to call the objective.
        micro_batch_size: examples per forward pass and worker: the run's, or fewer (`training/start.py`).
        fallbacks: the settings that did not work, one phrase each with the reason.
    """

    def __init__(self, run: RunConfig, task: Task, device: torch.device) -> None:
        self.run = run
        self.task = task
        self.device = device
        self.module = self._initialized().to(device, torch.bfloat16 if run.train.weights == "bf16" else torch.float32)
        self.objective = wrap(Objective(task, self.module), run.train, device)
        self.model = self.objective if isinstance(self.objective, DistributedDataParallel) else self.module
        self.micro_batch_size = run.micro_batch_size
        self.fallbacks: list[str] = []
        self.use_eager()

    def use_eager(self) -> None:
        """Use the model without compilation."""
        self.compiled = Compiled(forward=self.objective, took=False)

    def compile(self) -> None:
        """Compile forward and backward (`compile_forward`, which warns if it falls back to eager)."""
        batch = self.to_device(self.sampler().next())

        def warm_up(forward: Callable[..., Tensor]) -> None:
            self.gradient(forward, batch)
            self.model.zero_grad(set_to_none=True)
            synchronize(self.device)

        self.compiled = compile_forward(self.objective, warm_up, alone=not self.sharded)

    def gradient(self, forward: Callable[..., Tensor], batch: Batch) -> None:
        """Forward and backward of one micro-batch, without communication unless the model is sharded."""
        alone = self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()
        with alone:
            with self.precision():
                loss = forward(batch)
            torch.autograd.backward(loss)

    def fresh(self, run: RunConfig, *, replay: Replay | None = None) -> Training:
        """The start of a run, independent of earlier use of the setup: weights and data order follow from the seed.

        Initial weights are written in place, so compiled code and process groups stay valid, and there is no second
        copy of the model.
        """
        self.reset()
        return self.training(run, replay=replay)

    def reset(self) -> None:
        """Give the model the initial weights that follow from the seed, and no gradients."""
        load_weights(self.module, full_weights(self._initialized()))
        self.model.zero_grad(set_to_none=True)
        self.model.train()

    def training(self, run: RunConfig, *, replay: Replay | None = None, optimizer: Optimizer | None = None) -> Training:
        """Trainer, optimizer and data that continue from the model's current weights.

        ``optimizer``: continue with it and its state; None: a new one.
        """
        if optimizer is None:
            optimizer = optimizer_of(self.task, self.module, run.optimizer_settings, seed=run.seed)
        trainer = HybridTrainer(
            self.model,
            optimizer,
            run.hybrid,
            lr_scheduler=build_schedule(optimizer, run.train),
            total_steps=run.train.steps,
            accumulate=self._as_cut(run).accumulate,
            clip_norm=run.train.clip_norm,
            seed=run.seed,
            scaler=torch.amp.GradScaler(self.device.type) if run.train.precision == "fp16" else None,
            decide=self._decide() if run.hybrid.look_every else None,
            replay=replay,
        )
        # Dropout differs between ranks; initial weights and data order must not.
        torch.manual_seed(run.seed * 1_000_003 + 1 + rank())
        return Training(run=run, trainer=trainer, optimizer=optimizer, sampler=self.sampler())

    @property
    def accumulate(self) -> int:
        """Micro-batches per worker and real step. Smaller ones are more, so the effective batch stays the same."""
        return self._as_cut(self.run).accumulate

    def _as_cut(self, run: RunConfig) -> RunConfig:
        """The run with the micro-batch size in use. ``self.run`` keeps the job's, since it identifies the run."""
        return replace(run, train=replace(run.train, micro_batch_size=self.micro_batch_size))

    def setting(self) -> dict[str, Any]:
        """Compilation, micro-batch size and workers in use. Runs that differ in them are not compared."""
        several = {"workers": world_size()} if world_size() > 1 else {}
        return {"compiled": self.compiled.took, "micro_batch_size": self.micro_batch_size, **several}

    def evidence(self) -> dict[str, Any]:
        """The requested and the used settings, and the reasons for fallbacks, for the run's result. Plain values."""
        return {
            "compile_asked": self.run.train.compile,
            **self.compiled.evidence(),
            "micro_batch_asked": self.run.micro_batch_size,
            "micro_batch_used": self.micro_batch_size,
            "accumulated": self.accumulate,
            "effective_batch": self.micro_batch_size * self.accumulate * world_size(),
            "fallbacks": "; ".join(self.fallbacks),
        }

    @property
    def sharded(self) -> bool:
        """Whether each rank holds only a part of the model (FSDP), so that a forward pass needs all ranks."""
        return world_size() > 1 and self.run.train.parallel == "fsdp"

    def next_loss(self, training: Training, read: Callable[[int], None]) -> Callable[[], Tensor]:
        """The closure that a real step calls for each micro-batch.

        It calls ``read`` with the size of the micro-batch on all ranks, in the task's ``unit`` (tokens for GPT-2).
        """
        clock = training.trainer.clock

        def closure() -> Tensor:
            with clock.part("data"):
                batch = self.to_device(training.sampler.next())
            read(self.task.count(batch) * world_size())
            with clock.part("forward"), self.precision():
                return self.compiled.forward(batch)

        return closure

    def _decide(self) -> Callable[[int], Tensor] | None:
        """Computes the loss of one of the first batches of the split ``decide``; None if the task has no such split."""
        if "decide" not in self.task.parts:
            _log.warning("hybrid.look_every is set but the task has no split 'decide': nothing is looked at")
            return None
        batches = list(islice(self.task.stretches("decide"), _LOOKED_AT))

        def loss_of(look: int) -> Tensor:
            number = look if self.sharded else look * world_size() + rank()  # a sharded model needs all ranks
            with self.precision():
                return self.task.loss(self.module, self.to_device(batches[number % len(batches)]))

        return loss_of

    def precision(self) -> AbstractContextManager[object]:
        """Forwards in bf16 or fp16 where the run says so. Weights have the type that `TrainConfig.weights` says."""
        dtype = AUTOCAST[self.run.train.precision]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _initialized(self) -> nn.Module:
        torch.manual_seed(self.run.seed)
        return self.task.build_model()

    def sampler(self) -> Sampler:
        """The training data from its start: this rank's share of one global micro-batch at a time."""
        return self.task.sampler(
            batch_size=self.micro_batch_size * world_size(),
            seed=self.run.seed,
            rank=rank(),
            world=world_size(),
        )

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch to the model's device."""
        return batch_to(batch, self.device)
