"""A run's pieces put together: the model on its device once a process, all that trains it anew for each start."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
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


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read now is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A run at its start (or loaded to where a checkpoint left it). ``run`` may be a plain variant of the setup's."""

    run: RunConfig
    trainer: HybridTrainer
    optimizer: Optimizer
    sampler: Sampler

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])


class TrainSetup:
    """The model on its device, as ranks train it together, compiled if asked. Made once a process.

    Args:
        run: what to build.
        task: its model, data and loss.
        device: from `choose_device`.

    Attributes:
        module: the bare model: its weights, and what is evaluated.
        objective: model and loss as they are trained, called with a batch: alone, in DDP, or with a sharded model.
        model: what has the parameters and lets ranks reduce gradients: the module itself, or DDP.
        compiled: how the objective is called.
        micro_batch_size: sequences in one forward on one worker: as the run says, or fewer (`training/start.py`).
        fallbacks: what did not work before, one sentence a setting.
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
        """Call the model as it is."""
        self.compiled = Compiled(forward=self.objective, took=False)

    def compile(self) -> None:
        """Compile the forward and backward, as far as it goes (`compile_forward` warns where it does not)."""
        batch = self.to_device(self.sampler().next())

        def warm_up(forward: Callable[..., Tensor]) -> None:
            self.gradient(forward, batch)
            self.model.zero_grad(set_to_none=True)
            synchronize(self.device)

        self.compiled = compile_forward(self.objective, warm_up, alone=not self.sharded)

    def gradient(self, forward: Callable[..., Tensor], batch: Batch) -> None:
        """Forward and backward of one micro-batch, by this rank alone where it has the whole model."""
        alone = self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()
        with alone:
            with self.precision():
                loss = forward(batch)
            torch.autograd.backward(loss)

    def fresh(self, run: RunConfig, *, replay: Replay | None = None) -> Training:
        """The start of a run, whatever the setup was used for before: everything is drawn from the seed again.

        Weights are written in place. So compiled code and process groups stay good, and no second copy of the
        model is kept.
        """
        load_weights(self.module, full_weights(self._initialized()))
        self.model.zero_grad(set_to_none=True)
        self.model.train()
        return self.training(run, replay=replay)

    def training(self, run: RunConfig, *, replay: Replay | None = None) -> Training:
        """What trains the model on from the weights it has."""
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
            replay=replay,
        )
        # Dropout differs between ranks; initial weights and data order must not.
        torch.manual_seed(run.seed * 1_000_003 + 1 + rank())
        return Training(run=run, trainer=trainer, optimizer=optimizer, sampler=self.sampler())

    @property
    def accumulate(self) -> int:
        """Micro-batches of one worker in one real step. Smaller ones are more: the effective batch stays."""
        return self._as_cut(self.run).accumulate

    def _as_cut(self, run: RunConfig) -> RunConfig:
        """The run with the micro-batch in use. ``self.run`` stays as it was asked for: that is what it is known by."""
        return replace(run, train=replace(run.train, micro_batch_size=self.micro_batch_size))

    def setting(self) -> dict[str, Any]:
        """How the run trains on its machine; runs that differ in it are not measured against each other."""
        return {"compiled": self.compiled.took, "micro_batch_size": self.micro_batch_size}

    def evidence(self) -> dict[str, Any]:
        """What was asked, what was used, and why. Plain values, for the run's result."""
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
        """Whether each rank holds a part of the model alone, so that a forward needs them all."""
        return world_size() > 1 and self.run.train.parallel == "fsdp"

    def next_loss(self, training: Training, read: Callable[[int], None]) -> Callable[[], Tensor]:
        """The closure that a real step calls for each micro-batch.

        ``read`` hears how many of the task's ``unit`` all ranks read.
        """
        clock = training.trainer.clock

        def closure() -> Tensor:
            with clock.part("data"):
                batch = self.to_device(training.sampler.next())
            read(self.task.count(batch) * world_size())
            with clock.part("forward"), self.precision():
                return self.compiled.forward(batch)

        return closure

    def precision(self) -> AbstractContextManager[object]:
        """Forwards in bf16 or fp16 where the run says so. Weights have the type that `TrainConfig.weights` says."""
        dtype = AUTOCAST[self.run.train.precision]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _initialized(self) -> nn.Module:
        torch.manual_seed(self.run.seed)
        return self.task.build_model()

    def sampler(self) -> Sampler:
        """Training data from its start: one global micro-batch at a time, this rank's share of it."""
        return self.task.sampler(
            batch_size=self.micro_batch_size * world_size(),
            seed=self.run.seed,
            rank=rank(),
            world=world_size(),
        )

    def to_device(self, batch: Batch) -> Batch:
        """The batch where the model is."""
        return batch_to(batch, self.device)
