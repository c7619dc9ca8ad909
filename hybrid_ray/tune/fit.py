"""How much memory one run needs, from its configuration alone, so that what cannot fit is refused before anything
starts.

An estimate, on the high side. Measured peaks belong to a run's result.
"""

from dataclasses import dataclass

from hybrid_ray.config import HybridConfig, JobConfig
from hybrid_ray.models.shapes import PRESETS, GPT2Shape, parameter_count

__all__ = ["MemoryNeed", "memory_need"]

_FLOAT = 4
_PROCESS = 600 * 2**20  # a Python process with PyTorch and Ray loaded; on a GPU its context and kernels


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
    """Of one worker of one hybrid run, with every rank holding the whole model (DDP)."""
    shape = PRESETS[job.model.preset]
    parameters = parameter_count(shape, vocab_size)
    run = job.run()
    tokens = run.micro_batch_size * job.train.sequence_length
    moments = {"adamw": 2, "adam": 2, "sgd": 1}[job.train.optimizer]
    return MemoryNeed(
        weights=_FLOAT * parameters,
        gradients=_FLOAT * parameters,
        optimizer=_FLOAT * moments * parameters,
        predictor=0 if job.hybrid.buffer_device == "host" else predictor_bytes(job.hybrid) * parameters,
        activations=_activations(shape, job, tokens),
        logits=_logits(job, tokens, vocab_size),
    )


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
        "linear_fit": 1 + hybrid.fit_windows,
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
