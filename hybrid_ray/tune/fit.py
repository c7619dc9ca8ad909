"""How much memory one run needs, from its configuration alone, so that what cannot fit is refused before anything
starts.

An estimate, on the high side. Measured peaks belong to a run's result.
"""

import math
from dataclasses import dataclass, replace

from hybrid_ray.config import HybridConfig, JobConfig, OptimizerName
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, parameter_count

__all__ = ["MemoryNeed", "memory_need", "predictor_bytes"]

_FLOAT = 4
_PROCESS = 600 * 2**20  # a Python process with PyTorch and Ray loaded; on a GPU its context and kernels
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


def memory_need(job: JobConfig, vocab_size: int) -> MemoryNeed:
    """Of one worker of one hybrid run. Several workers hold the model each (DDP) or a part of it each (FSDP)."""
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
