"""A run's pieces put together: the model on its device once a process, all that trains it anew for each start."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hybrid_ray.config import RunConfig
from hybrid_ray.data import Dataset, Sampler
from hybrid_ray.errors import ConfigError
from hybrid_ray.hybrid.trainer import HybridTrainer
from hybrid_ray.models import CNN, GPT2, build_model
from hybrid_ray.optim import build_optimizer, build_schedule
from hybrid_ray.records import Replay
from hybrid_ray.train.compile import Compiled, compile_forward
from hybrid_ray.train.parallel import full_weights, load_weights, rank, world_size, wrap

__all__ = ["Bench", "Training", "choose_device", "synchronize"]


def choose_device(run: RunConfig) -> torch.device:
    """Where the run trains: the current GPU, or the CPU.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if run.train.device == "cuda" and not available:
        raise ConfigError(
            "train.device is 'cuda' but PyTorch sees no GPU: use device: auto or cpu, or give the run a GPU "
            "(resources.gpus_per_worker)"
        )
    if run.train.device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given, so that a clock read now is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A run at its start (or loaded to where a checkpoint left it). ``run`` may be a plain variant of the bench's."""

    run: RunConfig
    trainer: HybridTrainer
    optimizer: Optimizer
    sampler: Sampler

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])


class Bench:
    """The model on its device, as ranks train it together, compiled if asked. Made once a process.

    Args:
        run: what to build.
        corpus: its data; how many values a target can take comes from it.
        device: from `choose_device`.

    Attributes:
        module: the bare model: its weights, and what is evaluated.
        model: the module as it is trained: itself, in DDP, or sharded.
        compiled: how its forward is called.
    """

    def __init__(self, run: RunConfig, corpus: Dataset, device: torch.device) -> None:
        self.run = run
        self.corpus = corpus
        self.device = device
        self.module = self._initialized().to(device)
        self.model: nn.Module = wrap(self.module, run.train, device)
        self.compiled = Compiled(forward=self.model, took=False)

    def compile(self) -> None:
        """Compile the forward and backward, as far as it goes (`compile_forward` warns where it does not)."""
        x_BT, y_BT = self.to_device(self.sampler().next())

        def warm_up(forward: Callable[..., Tensor]) -> None:
            with self.precision():
                loss = forward(x_BT, y_BT)
            torch.autograd.backward(loss)
            self.model.zero_grad(set_to_none=True)
            synchronize(self.device)

        self.compiled = compile_forward(self.model, warm_up)

    def fresh(self, run: RunConfig, *, replay: Replay | None = None) -> Training:
        """The start of a run, whatever the bench was used for before: everything is drawn from the seed again.

        Weights are written in place. So compiled code and process groups stay good, and no second copy of the
        model is kept.
        """
        load_weights(self.module, full_weights(self._initialized()))
        self.model.zero_grad(set_to_none=True)
        self.model.train()
        optimizer = build_optimizer(self.model, run.train)
        trainer = HybridTrainer(
            self.model,
            optimizer,
            run.trainer_settings,
            lr_scheduler=build_schedule(optimizer, run.train),
            replay=replay,
        )
        # Dropout differs between ranks; initial weights and data order must not.
        torch.manual_seed(run.seed * 1_000_003 + 1 + rank())
        return Training(run=run, trainer=trainer, optimizer=optimizer, sampler=self.sampler())

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the model alone, so that a forward needs them all."""
        return world_size() > 1 and self.run.train.parallel == "fsdp"

    def next_loss(self, training: Training, read: Callable[[int], None]) -> Callable[[], Tensor]:
        """The closure that a real step calls for each micro-batch.

        ``read`` hears how many targets all ranks read: tokens of text, or pictures.
        """
        clock = training.trainer.clock

        def closure() -> Tensor:
            with clock.part("data"):
                x_BT, y_BT = self.to_device(training.sampler.next())
            read(y_BT.numel() * world_size())
            with clock.part("forward"), self.precision():
                return self.compiled.forward(x_BT, y_BT)

        return closure

    def precision(self) -> AbstractContextManager[object]:
        """Forwards in bf16 where the run says so; weights and optimizer stay fp32."""
        if self.run.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _initialized(self) -> GPT2 | CNN:
        torch.manual_seed(self.run.seed)
        return build_model(
            self.run.model, vocab_size=self.corpus.classes, sequence_length=self.run.train.sequence_length
        )

    def sampler(self) -> Sampler:
        """Training data from its start: one global micro-batch at a time, this rank's share of it."""
        return self.corpus.sampler(
            batch_size=self.run.micro_batch_size * world_size(),
            sequence_length=self.run.train.sequence_length,
            seed=self.run.seed,
            rank=rank(),
            world=world_size(),
        )

    def to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs and targets where the model is."""
        if self.device.type == "cpu":
            return batch
        # From pinned memory the copy does not hold up the queue of kernels.
        x_BT, y_BT = (part.pin_memory().to(self.device, non_blocking=True) for part in batch)
        return x_BT, y_BT
