"""How much memory a run needs on one worker's device, part by part, at the worst moment of its steps.

The steps are traced with fake tensors through the run's own code (`memory.trace`), so no formula can fall behind it.
Blocks of a GPT-2 are alike, and what is allocated at a given place of a step grows with their number along a straight
line. So a deep model is traced with 3 and with 4 blocks, and the rest follows: exact, and two seconds instead of ten
for the 1.5B model.

Eager mode is what is traced; ``torch.compile`` usually needs less. What the trace can't show is added by rule: the
state of an 8-bit optimizer (its step is compiled), copies and shards of several workers, the process itself.

A GPU is traced as a CPU, whose kernels keep the same tensors for the backward pass: fused attention keeps its output
and one number a row, no matrix. Where autocast differs, in layer norms of bf16 weights (fp32 on a GPU), the trace does
as a GPU does. Not in the estimate, and not measured on a GPU yet: work space of cuBLAS (8 to 32 MiB) and of the
backward pass of attention (an fp32 copy of the gradient of one block's queries); bytes that the allocator rounds up,
or can't use because they lie apart.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hybrid_ray.config import DataConfig, RunConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.memory.allocation_log import Peak
from hybrid_ray.memory.trace import Batches, Numbers, trace
from hybrid_ray.tasks import Task
from hybrid_ray.tasks.load import check_gradient

__all__ = ["PARTS", "MemoryNeed", "memory_need", "size_text"]

PARTS = ("weights", "gradients", "optimizer", "predictor", "activations", "logits", "temporaries")
log = logging.getLogger("hybrid_ray")

_TRACED = 3, 4  # blocks: a first and a last one, and one or two between
_PROCESS = 600 * 2**20  # a Python process with PyTorch and Ray loaded; on a GPU its context and kernels
_PINNED = "pinned"
_BLOCK_8BIT, _LEAST_8BIT = 256, 4096  # optim/eight_bit.py
_ROUNDED = 13  # bytes a number of a parameter, while its bf16 weights are stepped and rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes of one worker on the device that trains, at the moment when most are allocated. The parts add up."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    predictor: int = 0
    activations: int = 0
    logits: int = 0
    temporaries: int = 0
    moment: str = "start"
    moments: Mapping[str, int] = field(default_factory=dict)  # the peak of each moment, most first
    process: int = _PROCESS
    host: int = 0  # bytes of host memory beside a GPU: the process, and a model that is drawn or what is pinned

    @property
    def allocated(self) -> int:
        """What PyTorch allocates."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def total(self) -> int:
        """With the process itself."""
        return self.allocated + self.process

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which they are shown."""
        return {name: getattr(self, name) for name in (*PARTS, "process")}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Parameters in all and of the largest tensor; bytes of weights and of an 8-bit optimizer's state."""

    parameters: int
    weights: int
    outside: int  # of the blocks
    block: int
    layers: int
    state_8bit: int
    largest: int


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def memory_need(run: RunConfig, task: Task) -> MemoryNeed:
    """What one worker of a run needs. Several hold the model each (DDP) or a part of it each (FSDP).

    Takes about a second, once for each kind of run in a process.
    """
    # What says nothing about memory is left out of the key.
    train = replace(run.train, steps=1000, learning_rate=1e-3, micro_batch_size=run.micro_batch_size)
    plain = replace(run, arm="hybrid", seed=0, data=DataConfig(), replay=None, train=train)
    return _need(plain, Batches.of(run, task))


@lru_cache(maxsize=256)
def _need(run: RunConfig, batches: Batches) -> MemoryNeed:
    sizes, alone = _traced(run, batches)
    pinned = alone.pop(_PINNED).total
    peaks = {name: _on_worker(run, sizes, dict(peak.parts)) for name, peak in alone.items()}
    totals = {name: sum(parts.values()) for name, parts in peaks.items()}
    order = sorted(totals, key=lambda name: totals[name], reverse=True)
    return MemoryNeed(
        **peaks[order[0]],
        moment=order[0],
        moments={name: totals[name] for name in order},
        host=_host(run, sizes, pinned) if run.train.device == "cuda" else 0,
    )


def _host(run: RunConfig, sizes: _Sizes, pinned: int) -> int:
    """Each worker draws the whole model in fp32, and lets go of it before anything is pinned."""
    shards = run.workers if run.train.parallel == "fsdp" else 1
    return _PROCESS + max(4 * sizes.parameters, math.ceil(pinned / shards))


def _peaks(run: RunConfig, batches: Batches) -> dict[str, Peak]:
    """The peak of each moment, as one worker alone would have it; and as `_PINNED` what is in pinned memory."""
    train = run.train
    if train.optimizer == "adamw8bit":  # traced as an optimizer without state
        train = replace(train, optimizer="sgd", betas=(0.0, 0.0), optimizer_device="model")
    traced = replace(run, train=train)
    depth = batches.task.depth
    if depth is None or depth <= _TRACED[1]:
        return _device_peaks(traced, batches, None)
    few, more = (_device_peaks(traced, batches, layers) for layers in _TRACED)
    rest = depth - _TRACED[0]
    # Between the first and the last block memory goes along a straight line too: one of the two is higher.
    names = [name for name in few if name in more and not name.endswith("between")]
    return {
        name: Peak(
            moment=name,
            parts={part: few[name].of(part) + rest * (more[name].of(part) - few[name].of(part)) for part in PARTS},
        )
        for name in names
    }


def _device_peaks(run: RunConfig, batches: Batches, layers: int | None) -> dict[str, Peak]:
    """Without what lives in host memory, where that is another memory. In Predict an optimizer's state may go there."""
    elsewhere = {"host", "optimizer"} if run.train.optimizer_device == "host" else {"host"}
    pinned = elsewhere | {"optimizer"} if run.hybrid.offload_optimizer else elsewhere
    found = trace(run, batches, layers=layers)
    peaks = found.peaks(without=elsewhere if run.train.device == "cuda" else ())
    return {**peaks, _PINNED: Peak(moment=_PINNED, parts={"predictor": found.pinned(pinned)})}


def _on_worker(run: RunConfig, sizes: _Sizes, parts: dict[str, int]) -> dict[str, int]:
    """What the trace can't show: 8-bit state, copies and shards of several workers."""
    parts = {name: max(0, parts.get(name, 0)) for name in PARTS}
    if run.train.optimizer == "adamw8bit":
        if run.train.optimizer_device == "model":
            parts["optimizer"] += sizes.state_8bit
        if run.train.weights == "bf16" and parts["temporaries"]:
            parts["temporaries"] = max(parts["temporaries"], _ROUNDED * sizes.largest)
    if run.workers > 1 and run.train.parallel == "ddp":
        parts["gradients"] += sizes.weights  # DDP copies gradients to buckets
    elif run.workers > 1:
        # FSDP has whole what lies outside the blocks, the block at work and the next one.
        whole = sizes.outside + min(2, sizes.layers) * sizes.block
        for name in ("weights", "gradients", "optimizer", "predictor"):
            parts[name] = math.ceil(parts[name] / run.workers)
        parts["weights"] += whole
        parts["gradients"] += whole
    return parts


def _traced(run: RunConfig, batches: Batches) -> tuple[_Sizes, dict[str, Peak]]:
    """Sizes, and peaks of one worker alone. A user's own model that can't be run on fake tensors (it looks at numbers,
    or leaves torch) is counted instead: its parameters, without what a forward keeps.

    Raises:
        ConfigError: a user's own model fails on real tensors too.
    """
    of_torch = logging.getLogger("torch._subclasses.fake_tensor")
    level = of_torch.level
    of_torch.setLevel(logging.CRITICAL)  # it logs a traceback of what is answered here
    try:
        with FakeTensorMode(), Numbers():  # type: ignore[no-untyped-call]
            sizes = _sizes(run, batches.task.build_model())
        return sizes, _peaks(run, batches)
    except HybridRayError:
        raise
    except Exception as error:
        if run.task.factory is None:
            raise
        problem = " ".join(str(error).split())[:200]
    finally:
        of_torch.setLevel(level)
    sizes = _sizes(run, check_gradient(batches.task))
    log.warning("%s can't be traced (%s): its activations are not in the estimate of memory", run.task.factory, problem)
    parts = {"weights": sizes.weights, "gradients": sizes.weights, "optimizer": 8 * sizes.parameters}
    nothing = Peak(moment=_PINNED, parts={})
    return sizes, {
        "optimizer": Peak(moment="optimizer", parts={**parts, "predictor": 8 * sizes.parameters}),
        _PINNED: nothing,
    }


def _sizes(run: RunConfig, model: nn.Module) -> _Sizes:
    width = 2 if run.train.weights == "bf16" else 4
    counts = [parameter.numel() for parameter in model.parameters()]
    # As FSDP shards: each child of a list by itself, the rest together.
    blocks = [child for module in model.modules() if isinstance(module, nn.ModuleList) for child in module]
    in_blocks = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    return _Sizes(
        parameters=sum(counts),
        weights=width * sum(counts),
        outside=width * (sum(counts) - sum(in_blocks)),
        block=width * max(in_blocks, default=0),
        layers=len(blocks),
        state_8bit=sum(map(_state_8bit, counts)),
        largest=max(counts),
    )


def _state_8bit(count: int) -> int:
    if count < _LEAST_8BIT or count % _BLOCK_8BIT:
        return 8 * count
    return 2 * (count + 4 * count // _BLOCK_8BIT)
