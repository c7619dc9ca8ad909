"""A small hybrid training as every rank runs it, on its slice of a global batch. With no process group: one rank, all
of it."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hybrid_ray.config import HybridConfig
from hybrid_ray.method import HybridTrainer
from hybrid_ray.run_result import Replay
from hybrid_ray.training.telemetry.monitor import energy_of_all

GLOBAL_BATCH, INPUTS, CLASSES = 8, 12, 3
CONFIG = HybridConfig(
    warmup_steps=4,
    full_steps=4,
    prediction_horizon=4,
    correction_interval=2,
    correct_steps=3,
    confidence_threshold=0.0,
    predictor={"name": "ema_nesterov", "time_constant": 20.0, "gain": 1.0},  # type: ignore[arg-type]
    first_fraction=0.0,
    off_fraction=0.0,
    sample_one_in=1,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A number that is not finite, on one rank, whenever one of these nominal steps is due.

    ``loss``: the loss is NaN. ``gradient``: the loss is finite and its gradient NaN. ``update``: the predictor's
    memory is.
    """

    what: str
    steps: tuple[int, ...]
    rank: int = 1
    value: float = math.nan


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a rank is to train. ``parallel``: ddp, fsdp2, or none (one process)."""

    parallel: str = "none"
    steps: int = 40
    config: HybridConfig = CONFIG
    accumulate: int = 1
    total_steps: int | None = None  # where the predictor needs it
    learning_rate: float = 1e-2
    scaled: bool = False  # the loss, as for mixed precision in fp16
    replay: Replay | None = None
    faults: tuple[Fault, ...] = ()
    restore_at: int | None = None  # save, build everything anew, restore, go on


@dataclass(slots=True)
class Story:
    """What a rank saw. Everything in it must be the same on every rank."""

    phases: list[str] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    norms: list[float | None] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    levels: list[str] = field(default_factory=list)
    events: list[str | None] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of the whole model, at the end
    error: str | None = None

    def at(self, step: int) -> tuple[str, str, str | None]:
        """Phase, level and event of nominal step ``step`` (from 1)."""
        return self.phases[step - 1], self.levels[step - 1], self.events[step - 1]


class Classifier(nn.Module):
    """Two layers, a head and a temperature, of sizes that ranks can't share evenly. Seeded: every rank begins alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Linear(INPUTS, 9), nn.Linear(9, 9)])
        self.head = nn.Linear(9, CLASSES)
        self.sharpness = nn.Parameter(torch.ones(1))

    def forward(self, x_BI: Tensor) -> Tensor:
        for block in self.blocks:
            x_BI = torch.tanh(block(x_BI))
        return self.sharpness * self.head(x_BI)


class Training:
    """Model, optimizer, trainer and data position of one rank."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if job.parallel != "none" else (0, 1)
        module = Classifier()
        self.model: nn.Module = module
        if job.parallel == "ddp":
            self.model = DistributedDataParallel(module)
        elif job.parallel == "fsdp2":
            for block in module.blocks:
                fully_shard(block)
            self.model = fully_shard(module)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=job.learning_rate, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0 - 0.5 * step / job.steps)
        self.trainer = HybridTrainer(
            self.model,
            self.optimizer,
            job.config,
            lr_scheduler=schedule,
            total_steps=job.total_steps,
            accumulate=job.accumulate,
            clip_norm=1.0,
            scaler=torch.amp.GradScaler("cpu", init_scale=1024.0) if job.scaled else None,
            replay=job.replay,
        )
        self.micro_batches = 0  # read so far
        self.steps = 0

    def closure(self) -> Tensor:
        """The loss of this rank's slice of the next micro-batch."""
        x_BI, y_B = micro_batch(self.micro_batches, GLOBAL_BATCH // self.job.accumulate)
        self.micro_batches += 1
        mine = slice(self.rank * len(x_BI) // self.world, (self.rank + 1) * len(x_BI) // self.world)
        logits_BC = self.model(x_BI[mine])
        loss = nn.functional.cross_entropy(logits_BC, y_B[mine])
        for fault in self._due():
            if fault.what == "loss":
                loss = loss * fault.value
            if fault.what == "gradient":
                loss = loss + (logits_BC - logits_BC.detach()).abs().sum().sqrt()  # 0, with an infinite slope
        return loss

    def step(self) -> Any:
        for fault in self._due():
            if fault.what == "update":
                poison(self.trainer, fault.value)
        result = self.trainer.step(self.closure)
        self.steps += 1
        return result

    def _due(self) -> list[Fault]:
        return [f for f in self.job.faults if f.rank == self.rank and self.steps + 1 in f.steps]

    def weights(self) -> list[float]:
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in self.model.parameters()]
        return [number for tensor in whole for number in tensor.detach().flatten().tolist()]

    def restored(self) -> "Training":
        """The same training after a stop: a new object from weights, the trainer's state and the data position."""
        other = Training(self.job)
        with torch.no_grad():
            for mine, theirs in zip(self.model.parameters(), other.model.parameters(), strict=True):
                theirs.copy_(mine)
        other.trainer.load_state_dict(self.trainer.state_dict())
        other.micro_batches, other.steps = self.micro_batches, self.steps
        return other


def poison(trainer: HybridTrainer, value: float) -> None:
    """Put a bad number into what the predictor remembers."""
    tensors = trainer._cycle.predictor.average.tensors
    next(tensor for tensor in tensors if tensor.numel()).view(-1)[0] = value


def micro_batch(number: int, size: int) -> tuple[Tensor, Tensor]:
    """Samples ``number * size`` and on of an endless global order: inputs and a learnable label."""
    teacher = torch.randn(INPUTS, CLASSES, generator=torch.Generator().manual_seed(7))
    samples = range(number * size, (number + 1) * size)
    x_BI = torch.stack([torch.randn(INPUTS, generator=torch.Generator().manual_seed(1000 + i)) for i in samples])
    return x_BI, (x_BI @ teacher).argmax(1)


def train(job: Job) -> Story:
    """Run the job; a raised error ends it and is told by name."""
    training, story = Training(job), Story()
    for step in range(job.steps):
        if step == job.restore_at:
            training = training.restored()
        try:
            result = training.step()
        except ArithmeticError as error:
            story.error = f"{type(error).__name__}: {error}"
            break
        story.phases.append(str(result.phase))
        story.losses.append(result.loss)
        story.norms.append(result.grad_norm)
        story.confidences.append(result.confidence)
        story.levels.append(str(result.level))
        story.events.append(result.event)
    story.weights = training.weights()
    return story


def traffic(job: Job) -> list[tuple[str, dict[str, list[int]]]]:
    """Of each nominal step: its phase, and of each kind of collective the tensor sizes it moved."""
    training, phases = Training(job), []
    with torch.profiler.profile(record_shapes=True) as profile:
        for step in range(job.steps):
            with torch.profiler.record_function(f"nominal step {step}"):
                phases.append(str(training.step().phase))
    events = profile.events()
    ends = {event.name: event.time_range.end for event in events if event.name.startswith("nominal step")}
    moved: list[dict[str, list[int]]] = [{} for _ in phases]
    for event in events:
        if event.name.startswith("gloo:"):
            step = next(step for step in range(job.steps) if event.time_range.start <= ends[f"nominal step {step}"])
            moved[step].setdefault(event.name.removeprefix("gloo:"), []).append(math.prod(event.input_shapes[0]))
    return list(zip(phases, moved, strict=True))


def gradient_size(parallel: str, world: int = 2) -> int:
    """Numbers in the whole gradient as it travels. FSDP2 pads the rows of each parameter to a multiple of the ranks."""
    shapes = [parameter.shape for parameter in Classifier().parameters()]
    if parallel == "fsdp2":
        return sum(math.ceil(rows / world) * world * math.prod(rest) for rows, *rest in shapes)
    return sum(map(math.prod, shapes))


def hang_on_rank_1() -> None:
    if dist.get_rank() == 1:
        time.sleep(60)


def energy(devices: tuple[str, ...]) -> float:
    """Of all devices, as every rank tells it: each sees 100 joules drawn by its own."""
    return energy_of_all(100.0, devices[dist.get_rank()])
