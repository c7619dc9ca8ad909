"""What is trained, on what, and how: the model, its data, and one run's training."""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, Strict

from hybrid_ray.config.named import NamedSetting, check_name, name_and_options
from hybrid_ray.config.section import MOST, NonNegative, Positive, Share, Whole, section

__all__ = ["DataConfig", "ModelConfig", "OptimizerName", "PruneScore", "TrainConfig"]

OptimizerName = Literal[
    "adamw", "adam", "sgd", "adamwspam", "adamwprune", "adamw8bit", "ademamix", "muon", "schedule_free"
]
PruneScore = Literal["bitter0", "bitter1", "bitter7"]
Preset = Literal["micro", "pico", "pico64", "nano", "124M", "350M", "774M", "1.5B", "cnn"]
Beta = Annotated[float, Field(ge=0.0, le=0.99999)]
Betas = Annotated[tuple[Beta, Beta], Strict(False)]


def _optimizer(setting: NamedSetting) -> NamedSetting:
    name, options = name_and_options(check_name(setting, get_args(OptimizerName)))
    return setting if options else name


OptimizerChoice: TypeAlias = Annotated[OptimizerName | NamedSetting, AfterValidator(_optimizer)]
"""One of ours by its name, or a user's: ``package.module:Name`` or ``{name: package.module:Name, option: value}``."""


@section
class ModelConfig:
    """Which model of ours."""

    preset: Preset = Field(default="nano", description="A shape of GPT-2 by its name, or cnn, which reads digits")
    dropout: float = Field(default=0.0, ge=0.0, le=0.9, description="Share of activations set to zero in training")
    activation_checkpointing: bool = Field(
        default=False,
        description="Compute activations again in the backward pass: less memory, a third more computation",
    )
    loss_chunks: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Parts the loss is computed in; more: less memory for logits, more computation",
    )
    pad_vocab_to: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Round the token table up to a multiple of this; 64 or 128 are faster on a GPU",
    )


@section
class DataConfig:
    """Which data of ours."""

    corpus: str = Field(
        default="stdlib",
        description="stdlib, installed (all installed packages), random, a folder of text, or digits (drawn here, for "
        "the cnn)",
    )
    tokenizer: Literal["bytes", "bpe"] = Field(default="bytes", description="How text becomes tokens")
    vocab_size: int | None = Field(
        default=None,
        ge=300,
        le=50_257,
        description="Of bpe; null: 50257. The bytes tokenizer has 257: the end of a file too",
    )
    heldout_tokens: int = Field(
        default=65_536, ge=1024, le=MOST, description="Tokens in each of the three held-out splits"
    )
    max_bytes: int | None = Field(default=None, ge=10_000, le=10**15, description="Most text that is read; null: all")
    cache_dir: str | None = Field(
        default=None, description="Where prepared data are kept; null: $HYBRID_RAY_CACHE, else ~/.cache/hybrid_ray"
    )


@section
class TrainConfig:
    """How one run trains."""

    steps: int = Field(default=600, ge=10, le=MOST, description="Nominal steps: real and predicted ones together")
    batch_size: int = Field(
        default=16, ge=1, le=MOST, description="Examples a step, over all workers and micro-batches"
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=MOST)] | Literal["auto"] | None = Field(
        default=None,
        description="Examples in one forward on one worker; null: batch_size / workers; auto: the most that fits free "
        "memory",
    )
    sequence_length: int = Field(default=64, ge=8, le=1_000_000, description="Tokens of one example")
    optimizer: OptimizerChoice = Field(
        default="adamw",
        description="What turns gradients into steps: one of those, torch.optim:RAdam and such, or your own; with "
        "options as {name: torch.optim:SGD, momentum: 0.9}",
    )
    clock_optimizer: OptimizerChoice | None = Field(
        default=None,
        description="Time is counted in plain steps of this optimizer, so that a dearer one pays for its steps; null: "
        "the run's own",
    )
    learning_rate: Positive = Field(default=3e-3, description="Of the optimizer, at the end of the warmup")
    min_lr_ratio: Share = Field(default=0.1, description="Learning rate at the end, as a share of learning_rate")
    lr_warmup_fraction: float = Field(
        default=0.05, ge=0.0, le=0.5, description="Warmup as a share of the run, so that a shorter run keeps its shape"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate"
    )
    weight_decay: NonNegative = Field(default=0.1, description="Of matrices; vectors do not decay")
    betas: Betas = Field(default=(0.9, 0.95), description="Decays of Adam's averages")
    clip_norm: Positive | None = Field(default=1.0, description="Gradients are clipped to this norm; null: never")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Of forwards and backwards (autocast); fp16 scales the loss, with torch's GradScaler",
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: no fp32 copy is kept, and updates are rounded stochastically"
    )
    optimizer_device: Literal["model", "host"] = Field(
        default="model", description="host: optimizer state is in pinned memory and streamed in for each step"
    )
    compile: bool = Field(default=False, description="Use torch.compile")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="How several workers train one model; fsdp shards it (FSDP2)"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda where workers get GPUs, else cpu"
    )
    threads: int = Field(default=1, ge=1, le=4096, description="CPU threads of one worker")
    evaluations: int = Field(
        default=8, ge=1, le=MOST, description="Evaluations, spread evenly over the run, the last one at its end"
    )
    calibration_steps: int = Field(
        default=20,
        ge=5,
        le=100_000,
        description="Plain steps that are timed first, then undone: a check of what the run's own steps cost",
    )
    checkpoint_every: Whole = Field(default=0, description="Nominal steps between checkpoints; 0: none")
    sample_tokens: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="Tokens that a baseline or hybrid run writes at its end, for the report",
    )
    alpha: NonNegative = Field(
        default=8.0, description="ademamix: weight of the slow average at the end; it grows from 0"
    )
    beta3: float = Field(
        default=0.996, ge=0.0, le=0.999999, description="ademamix: decay of the slow average at the end"
    )
    prune_score: PruneScore = Field(
        default="bitter7", description="adamwprune: what says which weights go (optim/prune.py)"
    )
    prune_sparsity: float = Field(
        default=0.5, ge=0.0, le=0.99, description="adamwprune: share of weights pruned at the end"
    )
    prune_start_fraction: Share = Field(
        default=0.1, description="adamwprune: share of the run after which pruning starts"
    )
    prune_end_fraction: Share = Field(
        default=0.75, description="adamwprune: share after which prune_sparsity is reached"
    )

    @property
    def optimizer_name(self) -> str:
        """The optimizer without its options."""
        return name_and_options(self.optimizer)[0]

    @property
    def own_optimizer(self) -> bool:
        """Whether the optimizer is none of ours."""
        return self.optimizer_name not in get_args(OptimizerName)
