"""Settings of the model, its data and one training run."""

from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, Strict

from hybrid_ray.config.named import NamedSetting, check_name, name_and_options
from hybrid_ray.config.section import MOST, NonNegative, Positive, Share, Whole, section

__all__ = ["DataConfig", "ModelConfig", "OptimizerName", "PruneScore", "TrainConfig"]

OptimizerName = Literal[
    "adamw", "adam", "sgd", "adamwspam", "adamwprune", "adamw8bit", "ademamix", "muon", "muon_ademamix", "schedule_free"
]
PruneScore = Literal["bitter0", "bitter1", "bitter7"]
Preset = Literal["micro", "pico", "pico64", "pico128", "nano", "mini", "124M", "350M", "774M", "1.5B", "cnn"]
Beta = Annotated[float, Field(ge=0.0, le=0.99999)]
Betas = Annotated[tuple[Beta, Beta], Strict(False)]


def _optimizer(setting: NamedSetting) -> NamedSetting:
    name, options = name_and_options(check_name(setting, get_args(OptimizerName)))
    return setting if options else name


OptimizerChoice: TypeAlias = Annotated[OptimizerName | NamedSetting, AfterValidator(_optimizer)]
"""A built-in name, or another optimizer: ``package.module:Name`` or ``{name: package.module:Name, option: value}``."""


@section
class ModelConfig:
    """The built-in model. Your own task ignores these settings unless its ``reads`` names them."""

    preset: Preset = Field(default="nano", description="Size of GPT-2, or cnn, which classifies digits")
    dropout: float = Field(default=0.0, ge=0.0, le=0.9, description="Fraction of activations set to zero in training")
    activation_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more computation",
    )
    loss_chunks: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Number of chunks in which the loss is computed; more chunks: less memory for logits, more "
        "computation",
    )
    pad_vocab_to: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Round the vocabulary size up to a multiple of this; 64 or 128 are faster on a GPU",
    )


@section
class DataConfig:
    """The built-in data. Your own task ignores these settings unless its ``reads`` names them."""

    corpus: str = Field(
        default="stdlib",
        description="stdlib (Python's standard library), installed (all installed packages), random, a folder of text "
        "files, or digits (synthetic pictures for the cnn)",
    )
    tokenizer: Literal["bytes", "bpe"] = Field(default="bytes", description="How text becomes tokens")
    vocab_size: int | None = Field(
        default=None,
        ge=300,
        le=50_257,
        description="Vocabulary size of bpe; null: 50257. The bytes tokenizer always has 257: 256 bytes and the end "
        "of a file",
    )
    heldout_tokens: int = Field(
        default=65_536, ge=1024, le=MOST, description="Tokens in each of the three held-out splits"
    )
    max_bytes: int | None = Field(
        default=None, ge=10_000, le=10**15, description="Maximum amount of text to read, in bytes; null: no limit"
    )
    cache_dir: str | None = Field(
        default=None, description="Folder for prepared data; null: $HYBRID_RAY_CACHE, else ~/.cache/hybrid_ray"
    )


@section
class TrainConfig:
    """Settings of one training run."""

    steps: int = Field(default=600, ge=10, le=MOST, description="Nominal steps: real and predicted steps together")
    batch_size: int = Field(
        default=16, ge=1, le=MOST, description="Examples per step, over all workers and micro-batches"
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=MOST)] | Literal["auto"] | None = Field(
        default=None,
        description="Examples in one forward pass on one worker; null: batch_size / workers; auto: the largest number "
        "that fits in free memory",
    )
    sequence_length: int = Field(default=64, ge=8, le=1_000_000, description="Tokens in one example")
    optimizer: OptimizerChoice = Field(
        default="adamw",
        description="Optimizer of the real steps: one of these names, another such as torch.optim:RAdam, or your own; "
        "with options: {name: torch.optim:SGD, momentum: 0.9}",
    )
    clock_optimizer: OptimizerChoice | None = Field(
        default=None,
        description="Time is measured in plain steps of this optimizer, so that a slower optimizer is charged for its "
        "slower steps; null: the run's own optimizer",
    )
    learning_rate: Positive = Field(default=3e-3, description="Learning rate at the end of the warmup")
    min_lr_ratio: Share = Field(
        default=0.1, description="Learning rate at the end of the run, as a fraction of learning_rate"
    )
    lr_warmup_fraction: float = Field(
        default=0.05, ge=0.0, le=0.5, description="Learning rate warmup, as a fraction of the run"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate decay"
    )
    weight_decay: NonNegative = Field(default=0.1, description="Weight decay of matrices; vectors are not decayed")
    betas: Betas = Field(default=(0.9, 0.95), description="Decay rates of Adam's two averages")
    clip_norm: Positive | None = Field(default=1.0, description="Gradients are clipped to this norm; null: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Precision of the forward and backward pass (autocast); fp16 also scales the loss (torch's "
        "GradScaler)",
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Format of the weights; bf16: no fp32 copy is kept, and updates are rounded stochastically",
    )
    optimizer_device: Literal["model", "host"] = Field(
        default="model",
        description="host: the optimizer state stays in pinned host memory and is streamed to the device in each step",
    )
    compile: bool = Field(default=False, description="Use torch.compile")
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="How several workers train one model; ddp copies the model to each, fsdp shards it (FSDP2)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: cuda if workers get GPUs, else cpu"
    )
    threads: int = Field(default=1, ge=1, le=4096, description="CPU threads of one worker")
    evaluations: int = Field(
        default=8,
        ge=1,
        le=MOST,
        description="Number of evaluations, spread evenly over the run; the last one is at its end",
    )
    calibration_steps: int | None = Field(
        default=None,
        ge=5,
        le=100_000,
        description="Real steps that are timed in turns with as many plain ones before the run, and then undone, to "
        "check that predicting does not slow them; null: a tenth of the run, from 5 to 100",
    )
    checkpoint_every: Whole = Field(default=0, description="Nominal steps between checkpoints; 0: none")
    sample_tokens: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="Tokens of sample text that baseline and hybrid runs generate at their end, for the report",
    )
    alpha: NonNegative | None = Field(
        default=None,
        description="For ademamix and muon_ademamix. Weight of the slow average at the end of the run; it grows from "
        "0. null: 8 for ademamix, 2 for muon_ademamix",
    )
    beta3: float = Field(
        default=0.996,
        ge=0.0,
        le=0.999999,
        description="For ademamix and muon_ademamix. Decay rate of the slow average at the end of the run",
    )
    prune_score: PruneScore = Field(
        default="bitter7", description="For adamwprune. Score that decides which weights are pruned"
    )
    prune_sparsity: float = Field(
        default=0.5, ge=0.0, le=0.99, description="For adamwprune. Fraction of weights pruned at the end"
    )
    prune_start_fraction: Share = Field(
        default=0.1, description="For adamwprune. Fraction of the run after which pruning starts"
    )
    prune_end_fraction: Share = Field(
        default=0.75, description="For adamwprune. Fraction of the run after which prune_sparsity is reached"
    )

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Nominal steps at which evaluations are scheduled: evenly spaced, the last at the end of the run.

        A run that predicts is evaluated at the first end of a cycle from there on (training/run.py).
        """
        return tuple(round(self.steps * (index + 1) / self.evaluations) for index in range(self.evaluations))

    @property
    def timed_steps(self) -> int:
        """Steps of each kind that are timed before the run (training/step_costs.py)."""
        return min(100, max(5, self.steps // 10)) if self.calibration_steps is None else self.calibration_steps

    @property
    def optimizer_name(self) -> str:
        """The optimizer without its options."""
        return name_and_options(self.optimizer)[0]

    @property
    def own_optimizer(self) -> bool:
        """Whether the optimizer is none of ours."""
        return self.optimizer_name not in get_args(OptimizerName)
