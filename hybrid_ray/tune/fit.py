"""How much memory one run needs, from its configuration alone, and how many runs that lets go side by side, so that
what cannot fit is refused before anything starts.

An estimate, on the high side. Measured peaks belong to a run's result.
"""

import math
from dataclasses import dataclass, replace

import psutil
import torch

from hybrid_ray.config import HybridConfig, JobConfig, OptimizerName
from hybrid_ray.errors import ConfigError
from hybrid_ray.models.cnn import NUMBERS_A_PICTURE, PARAMETERS
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, parameter_count

__all__ = ["Fit", "MemoryNeed", "fit", "memory_need", "predictor_bytes", "size_text"]

_FLOAT = 4
_PROCESS = 600 * 2**20  # a Python process with PyTorch and Ray loaded; on a GPU its context and kernels
_RAY = 2**30  # Ray's own processes, in host memory
_OPTIMIZER: dict[OptimizerName, int] = {  # bytes a parameter
    "sgd": 4,  # momentum
    "adam": 8,  # two moments
    "adamw": 8,
    "adamwspam": 8 + 4,  # and limits of one parameter at a time, counted as if of all
    "adamwprune": 8 + 1 + 8,  # and a mask; at the moment of pruning all scores, twice
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryNeed:
    """Bytes of one worker on the device that trains. ``predictor`` is 0 there when its buffers live in host memory."""

    weights: int
    gradients: int
    optimizer: int
    predictor: int
    activations: int
    logits: int
    process: int = _PROCESS

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part, in the order in which they are shown."""
        names = ("weights", "gradients", "optimizer", "predictor", "activations", "logits", "process")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How many runs go side by side, and the memory of the device they share."""

    runs: int
    need: MemoryNeed
    there: int  # bytes that are free
    sharing: int  # workers that share them

    @property
    def needed(self) -> int:
        """Bytes of all that share the device."""
        return self.sharing * self.need.total


def fit(job: JobConfig, need: MemoryNeed, device: torch.device, *, most: int) -> Fit:
    """The runs that memory lets go side by side, ``most`` at most. The memory of a cluster's machines is not known.

    A ``max_concurrent`` that the job names is kept or refused, never lowered in silence.

    Raises:
        ConfigError: not even one run fits, or not as many as the job names.
    """
    there, local = _memory_there(device), job.resources.address == "local"
    runs = most
    if local and job.resources.max_concurrent is None:
        room = there if device.type == "cuda" else there - _RAY
        runs = next((runs for runs in range(most, 1, -1) if _sharing(job, runs) * need.total <= room), 1)
    found = Fit(runs=runs, need=need, there=there, sharing=_sharing(job, runs))
    if local and found.needed > there:
        raise ConfigError(_too_much(job, found))
    return found


def _memory_there(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _sharing(job: JobConfig, runs: int) -> int:
    """Workers that share one memory: all of a machine's on processors, those with a share of the same GPU else."""
    workers, share = runs * job.resources.workers, job.resources.gpus
    return min(workers, max(1, int(1 // share))) if share else workers


def _too_much(job: JobConfig, found: Fit) -> str:
    of_memory = f"about {size_text(found.needed)} of memory but {size_text(found.there)} are free: lower"
    if found.runs > 1:
        return f"{found.runs} runs of {job.model.preset} side by side need {of_memory} resources.max_concurrent"
    return f"one run of {job.model.preset} needs {of_memory} train.micro_batch_size, resources.workers or model.preset"


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def memory_need(job: JobConfig, vocab_size: int) -> MemoryNeed:
    """Of one worker of one hybrid run. Several workers hold the model each (DDP) or a part of it each (FSDP)."""
    if job.model.preset == "cnn":
        return _cnn_need(job)
    shape = PRESETS[job.model.preset]
    run = job.run()
    tokens = run.micro_batch_size * job.train.sequence_length
    held, gathered, copied = _held(shape, job, vocab_size)
    return MemoryNeed(
        weights=_FLOAT * (held + gathered),
        gradients=_FLOAT * (held + copied),
        optimizer=_OPTIMIZER[job.train.optimizer] * held,
        predictor=0 if job.hybrid.buffer_device == "host" else predictor_bytes(job.hybrid) * held,
        activations=_activations(shape, job, tokens),
        logits=_logits(job, tokens, vocab_size),
    )


def _cnn_need(job: JobConfig) -> MemoryNeed:
    """The CNN is small, whatever is done with it: what counts is the process. Its logits are ten numbers."""
    kept = PARAMETERS * (2 if job.resources.workers > 1 else 1)  # DDP copies gradients to buckets
    return MemoryNeed(
        weights=_FLOAT * PARAMETERS,
        gradients=_FLOAT * kept,
        optimizer=_OPTIMIZER[job.train.optimizer] * PARAMETERS,
        predictor=0 if job.hybrid.buffer_device == "host" else predictor_bytes(job.hybrid) * PARAMETERS,
        activations=2 * _FLOAT * NUMBERS_A_PICTURE * job.run().micro_batch_size,  # and their gradients
        logits=0,
    )


def _held(shape: GPT2Shape, job: JobConfig, vocab_size: int) -> tuple[int, int, int]:
    """Parameters that one worker keeps, those whole for a while beside them, and gradients beside those it keeps.

    DDP copies gradients to buckets. FSDP has whole what lies outside the blocks, the block at work and the next one.
    """
    workers, parameters = job.resources.workers, parameter_count(shape, vocab_size)
    if workers == 1:
        return parameters, 0, 0
    if job.train.parallel == "ddp":
        return parameters, 0, parameters
    outside = parameter_count(replace(shape, layers=0), vocab_size)
    block = (parameters - outside) // shape.layers
    whole = outside + min(2, shape.layers) * block
    return math.ceil(parameters / workers), whole, whole


def predictor_bytes(hybrid: HybridConfig) -> int:
    """Bytes a parameter of the predictor's buffers: the displacement it applies, and what it keeps to make it."""
    buffers = {
        "off": 0,
        "nothing": 0,
        "coast": 1,
        "random": 1,
        "reversed": 2,
        "ema_nesterov": 2,
        "snoo": 3,
        "linear_fit": hybrid.fit_windows,
    }[hybrid.predictor]
    return buffers * (2 if hybrid.buffer_dtype == "bfloat16" else _FLOAT)


def _activations(shape: GPT2Shape, job: JobConfig, tokens: int) -> int:
    """What the backward pass needs: 34 bytes a token and unit of width in 16 bits (Korthikanti et al., arXiv
    2205.05198, section 4.1, without the attention matrix, which fused kernels do not keep), twice that in 32. With
    activation checkpointing one block's, and a block's input for each."""
    wide = 2 if job.train.precision == "fp32" else 1
    block = 34 * wide * tokens * shape.width
    if job.model.activation_checkpointing:
        return block + 2 * wide * tokens * shape.width * shape.layers
    return block * shape.layers


def _logits(job: JobConfig, tokens: int, vocab_size: int) -> int:
    """The logits, their fp32 copy where they are narrower, its log-softmax and the gradient."""
    own = 4 if job.train.precision == "fp32" else 2
    copies = 2 * _FLOAT + own + (0 if own == _FLOAT else _FLOAT)
    return copies * tokens * vocab_size // job.model.loss_chunks
