"""What is trained, on what, and how: the model, its data, and one run's training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hybrid_ray.config.checks import above, at_least, choice, within

__all__ = ["DataConfig", "ModelConfig", "OptimizerName", "PruneScore", "TrainConfig"]

OptimizerName = Literal[
    "adamw", "adam", "sgd", "adamwspam", "adamwprune", "adamw8bit", "ademamix", "muon", "schedule_free"
]
PruneScore = Literal["bitter0", "bitter1", "bitter7"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model. ``preset``: a GPT-2 shape of ``models/shapes.py`` (pico, pico64, nano, 124M, 350M, 774M, 1.5B), or
    ``cnn``.
    """

    preset: str = "nano"
    dropout: float = 0.0
    activation_checkpointing: bool = False
    loss_chunks: int = 1  # parts the loss is computed in; more: less memory for logits, one more output product
    pad_vocab_to: int = 1  # round the token table up to a multiple of this (64 or 128: faster on a GPU)

    def problems(self) -> Iterator[str]:
        yield from within("dropout", self.dropout, 0.0, 0.9)
        yield from at_least("loss_chunks", self.loss_chunks, 1)
        yield from at_least("pad_vocab_to", self.pad_vocab_to, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which data. ``corpus``: ``stdlib``, ``installed`` (all installed packages), ``random``, a folder of text, or
    ``digits`` (pictures of digits drawn here, for the ``cnn`` model).
    """

    corpus: str = "stdlib"
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int | None = None  # bpe only; bytes have 256 + 1 for the end of a file
    heldout_tokens: int = 65_536  # tokens in each of the three held-out splits
    max_bytes: int | None = None  # read at most this much text
    cache_dir: str | None = None  # default: $HYBRID_RAY_CACHE, else ~/.cache/hybrid_ray

    def problems(self) -> Iterator[str]:
        yield from choice("tokenizer", self.tokenizer, Literal["bytes", "bpe"])
        yield from at_least("heldout_tokens", self.heldout_tokens, 1024)
        yield from at_least("max_bytes", self.max_bytes, 100_000)
        if self.tokenizer == "bpe":
            yield from within("vocab_size", self.vocab_size or 50_257, 300, 50_257)
        elif self.vocab_size is not None:
            yield f"vocab_size is {self.vocab_size} but the bytes tokenizer has a fixed one: use tokenizer: bpe"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one run trains. ``steps`` are nominal steps: real and predicted ones together."""

    steps: int = 600
    batch_size: int = 16  # sequences a step, over all workers and micro-batches
    # Sequences a forward on one worker. None: batch_size / workers. auto: the most that free memory takes.
    micro_batch_size: int | Literal["auto"] | None = None
    sequence_length: int = 64
    optimizer: OptimizerName = "adamw"
    # Time is told in plain steps of this optimizer, so that a dearer one pays for its step. None: in the run's own.
    clock_optimizer: OptimizerName | None = None
    learning_rate: float = 3e-3
    min_lr_ratio: float = 0.1
    lr_warmup_fraction: float = 0.05  # of the run, so that a shorter run keeps the shape of its schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"  # of forwards and backwards (autocast)
    weights: Literal["fp32", "bf16"] = "fp32"  # bf16: no fp32 copy is kept; updates are rounded stochastically
    optimizer_device: Literal["model", "host"] = (
        "model"  # host: optimizer state in pinned memory, streamed in for a step
    )
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how several workers train one model; fsdp shards it (FSDP2)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto in a job: cuda where workers get GPUs, else cpu
    threads: int = 1  # CPU threads of one worker
    evaluations: int = 8  # evaluation points, evenly over the run, the last at its end
    calibration_steps: int = 20  # plain steps timed first, then undone: a check on what the run's own steps cost
    checkpoint_every: int = 0  # nominal steps between checkpoints; 0: none
    sample_tokens: int = 64  # generated at the end of a baseline or hybrid run, for the report; 0: none
    alpha: float = 8.0  # ademamix: weight of the slow average at the end of the run; it grows from 0
    beta3: float = 0.996  # ademamix: decay of the slow average at the end of the run
    prune_score: PruneScore = "bitter7"  # adamwprune only, as the next three (optim/prune.py)
    prune_sparsity: float = 0.5
    prune_start_fraction: float = 0.1  # of the run: where the sparsity ramp starts
    prune_end_fraction: float = 0.75  # of the run: where it reaches prune_sparsity

    def problems(self) -> Iterator[str]:
        yield from at_least("steps", self.steps, 10)
        yield from at_least("batch_size", self.batch_size, 1)
        if self.micro_batch_size != "auto":
            yield from at_least("micro_batch_size", self.micro_batch_size, 1)
        yield from at_least("sequence_length", self.sequence_length, 8)
        yield from choice("optimizer", self.optimizer, OptimizerName)
        if self.clock_optimizer is not None:
            yield from choice("clock_optimizer", self.clock_optimizer, OptimizerName)
        yield from above("learning_rate", self.learning_rate, 0.0)
        yield from within("min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        yield from within("lr_warmup_fraction", self.lr_warmup_fraction, 0.0, 0.5)
        yield from choice("schedule", self.schedule, Literal["cosine", "linear", "constant"])
        yield from at_least("weight_decay", self.weight_decay, 0.0)
        for beta in self.betas:
            yield from within("betas", beta, 0.0, 0.99999)
        if self.clip_norm is not None:
            yield from above("clip_norm", self.clip_norm, 0.0)
        yield from choice("precision", self.precision, Literal["fp32", "bf16"])
        yield from choice("weights", self.weights, Literal["fp32", "bf16"])
        yield from choice("optimizer_device", self.optimizer_device, Literal["model", "host"])
        yield from choice("parallel", self.parallel, Literal["ddp", "fsdp"])
        yield from choice("device", self.device, Literal["auto", "cpu", "cuda"])
        yield from at_least("threads", self.threads, 1)
        yield from within("evaluations", self.evaluations, 1, max(1, self.steps))
        yield from at_least("calibration_steps", self.calibration_steps, 5)
        yield from at_least("checkpoint_every", self.checkpoint_every, 0)
        yield from at_least("sample_tokens", self.sample_tokens, 0)
        yield from at_least("alpha", self.alpha, 0.0)
        yield from within("beta3", self.beta3, 0.0, 0.999999)
        yield from choice("prune_score", self.prune_score, PruneScore)
        yield from within("prune_sparsity", self.prune_sparsity, 0.0, 0.99)
        yield from within("prune_start_fraction", self.prune_start_fraction, 0.0, 1.0)
        yield from within("prune_end_fraction", self.prune_end_fraction, self.prune_start_fraction, 1.0)
