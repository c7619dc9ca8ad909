"""The memory a run needs on one worker's device, part by part, at the moment of its peak.

The run's own code is traced with fake tensors (`memory.trace`), so the estimate follows every change of the code. The
blocks of a GPT-2 are alike, so the memory at each place of a step grows linearly with their number. A deep model is
therefore traced with 3 and with 4 blocks and extrapolated: exact, and two seconds instead of ten for 1.5B.

The trace is of eager mode; ``torch.compile`` usually needs less. Formulas add what it cannot show: the state of an
8-bit optimizer (its step is compiled), copies and shards of several workers, and the process itself.

A GPU run is traced on the CPU, whose kernels save the same tensors for the backward pass: fused attention saves its
output and one number per row, not the attention matrix. Layer norms of bf16 weights are the exception: autocast
computes them in fp32 on a GPU, and the trace does the same. Not in the estimate, and not measured on a GPU yet: the
work space of cuBLAS (8 to 32 MiB) and of the attention's backward pass (an fp32 copy of the gradient of one block's
queries), and memory that the allocator loses to rounding and fragmentation.
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
from hybrid_ray.tasks.load import check_gradient, checked_model

__all__ = ["PARTS", "MemoryNeed", "memory_need", "size_text"]

PARTS = ("weights", "gradients", "optimizer", "predictor", "activations", "logits", "temporaries")
log = logging.getLogger("hybrid_ray")

_TRACED = 3, 4  # blocks in the two traced models
_PROCESS = 600 * 2**20  # bytes of a Python process with PyTorch and Ray, or of CUDA's context and kernels on a GPU
_PINNED = "pinned"
_BLOCK_8BIT, _LEAST_8BIT = 256, 4096  # see optim/eight_bit.py
_ROUNDED = 13  # bytes per element while bf16 weights are updated and rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes that one worker needs on the device that trains, at the moment of its peak. The parts add up to `total`."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    predictor: int = 0
    activations: int = 0
    logits: int = 0
    temporaries: int = 0
    moment: str = "start"
    moments: Mapping[str, int] = field(default_factory=dict)  # the peak of each moment, largest first
    process: int = _PROCESS
    parameters: int = 0  # of the model, a number
    host: int = 0  # bytes of host memory of a GPU run: the process, plus the initial model or pinned memory

    @property
    def allocated(self) -> int:
        """Bytes that PyTorch allocates."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def total(self) -> int:
        """`allocated` plus the process itself."""
        return self.allocated + self.process

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which `hybrid-ray plan` shows them."""
        return {name: getattr(self, name) for name in (*PARTS, "process")}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Sizes of a model: counts of parameters, bytes of everything else."""

    parameters: int
    weights: int
    outside: int  # weights outside the blocks
    block: int  # weights of the largest block
    layers: int  # number of blocks
    state_8bit: int  # an 8-bit optimizer's state
    largest: int  # parameters of the largest tensor


def size_text(size: int) -> str:
    """Bytes as text, ``512.0 MiB`` or ``1.5 GiB``."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def memory_need(run: RunConfig, task: Task) -> MemoryNeed:
    """The memory one worker of a run needs. With several workers each holds the model (DDP) or a part of it (FSDP).

    Takes about a second; the result is cached by the settings that matter.

    Raises:
        ConfigError: a user's own model fails on real data too.
    """
    # Settings that do not affect memory get fixed values, so that equal runs share one cache entry.
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
        parameters=sizes.parameters,
        host=_host(run, sizes, pinned) if run.train.device == "cuda" else 0,
    )


def _host(run: RunConfig, sizes: _Sizes, pinned: int) -> int:
    """Host bytes of a GPU run. A worker initialises the whole model in fp32 and frees it before it pins memory."""
    shards = run.workers if run.train.parallel == "fsdp" else 1
    return _PROCESS + max(4 * sizes.parameters, math.ceil(pinned / shards))


def _peaks(run: RunConfig, batches: Batches) -> dict[str, Peak]:
    """The peak of each moment with one worker, and under `_PINNED` the bytes in pinned host memory."""
    train = run.train
    if train.optimizer == "adamw8bit":  # traced as an optimizer without state; `_on_worker` adds its state
        train = replace(train, optimizer="sgd", betas=(0.0, 0.0), optimizer_device="model")
    traced = replace(run, train=train)
    depth = batches.task.depth
    if depth is None or depth <= _TRACED[1]:
        return _device_peaks(traced, batches, None)
    few, more = (_device_peaks(traced, batches, layers) for layers in _TRACED)
    rest = depth - _TRACED[0]
    # Between the first and the last block memory changes linearly, so the peak is at one of the two.
    names = [name for name in few if name in more and not name.endswith("between")]
    return {
        name: Peak(
            parts={part: few[name].of(part) + rest * (more[name].of(part) - few[name].of(part)) for part in PARTS},
        )
        for name in names
    }


def _device_peaks(run: RunConfig, batches: Batches, layers: int | None) -> dict[str, Peak]:
    """Traced peaks on the device. On a GPU, parts kept in host memory are left out and counted as pinned."""
    elsewhere = {"host", "optimizer"} if run.train.optimizer_device == "host" else {"host"}
    pinned = elsewhere | {"optimizer"} if run.hybrid.offload_optimizer else elsewhere
    found = trace(run, batches, layers=layers)
    peaks = found.peaks(without=elsewhere if run.train.device == "cuda" else ())
    return {**peaks, _PINNED: Peak(parts={"predictor": found.pinned(pinned)})}


def _on_worker(run: RunConfig, sizes: _Sizes, parts: dict[str, int]) -> dict[str, int]:
    """Add what the trace cannot show: the state of an 8-bit optimizer, copies and shards of several workers."""
    parts = {name: max(0, parts.get(name, 0)) for name in PARTS}
    if run.train.optimizer == "adamw8bit":
        if run.train.optimizer_device == "model":
            parts["optimizer"] += sizes.state_8bit
        if run.train.weights == "bf16" and parts["temporaries"]:
            parts["temporaries"] = max(parts["temporaries"], _ROUNDED * sizes.largest)
    if run.workers > 1 and run.train.parallel == "ddp":
        parts["gradients"] += sizes.weights  # DDP copies gradients into buckets
    elif run.workers > 1:
        # FSDP gathers the weights outside the blocks, the current block and the next one.
        whole = sizes.outside + min(2, sizes.layers) * sizes.block
        for name in ("weights", "gradients", "optimizer", "predictor"):
            parts[name] = math.ceil(parts[name] / run.workers)
        parts["weights"] += whole
        parts["gradients"] += whole
    return parts


def _traced(run: RunConfig, batches: Batches) -> tuple[_Sizes, dict[str, Peak]]:
    """Sizes, and the peaks with one worker.

    A user's own model may not run on fake tensors, for instance because it reads values or calls other libraries. Then
    its parameters are counted instead, without activations, and a warning says so.

    Raises:
        ConfigError: a user's own model fails on real tensors too.
    """
    of_torch = logging.getLogger("torch._subclasses.fake_tensor")
    level = of_torch.level
    of_torch.setLevel(logging.CRITICAL)  # it would log a traceback of errors that are handled here
    try:
        with FakeTensorMode(), Numbers():  # type: ignore[no-untyped-call]
            sizes = _sizes(run, checked_model(batches.task))
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
    log.warning("%s can't be traced (%s): the memory estimate leaves out its activations", run.task.factory, problem)
    parts = {"weights": sizes.weights, "gradients": sizes.weights, "optimizer": 8 * sizes.parameters}
    nothing = Peak(parts={})
    return sizes, {
        "optimizer": Peak(parts={**parts, "predictor": 8 * sizes.parameters}),
        _PINNED: nothing,
    }


def _sizes(run: RunConfig, model: nn.Module) -> _Sizes:
    width = 2 if run.train.weights == "bf16" else 4
    counts = [parameter.numel() for parameter in model.parameters()]
    # FSDP shards each child of a ModuleList by itself, and all the rest together.
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
