"""What a job says, as frozen dataclasses. ``jobfile.py`` reads them from YAML and lists every problem at once.

A *job* (`JobConfig`) is what a user writes. A *run* (`RunConfig`) is one training of one model with one seed: the
baseline, a searched trial, a control. Every run goes through the one loop in ``train/loop.py`` and runs differ in their
configuration alone.

Each class checks its own values in ``problems()`` and returns sentences; nothing here raises while a job is being read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, get_args

__all__ = [
    "Arm",
    "BudgetConfig",
    "CompareConfig",
    "ConfirmConfig",
    "ControlArm",
    "DataConfig",
    "FrontierConfig",
    "HybridConfig",
    "JobConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerName",
    "PredictorName",
    "PruneScore",
    "ResourcesConfig",
    "RunConfig",
    "SearchConfig",
    "Split",
    "TrainConfig",
]

Split = Literal["decide", "search", "confirm"]
Arm = Literal[
    "baseline",
    "hybrid",
    "equal_steps",
    "equal_time",
    "placebo",
    "random_direction",
    "reversed",
    "lr_matched",
    "frontier",
]
ControlArm = Literal["equal_steps", "equal_time", "placebo", "random_direction", "reversed", "lr_matched"]
OptimizerName = Literal["adamw", "adam", "sgd", "adamwspam", "adamwprune"]
PruneScore = Literal["bitter0", "bitter1", "bitter7"]
PredictorName = Literal["off", "ema_nesterov", "snoo", "linear_fit", "coast", "nothing", "random", "reversed"]


def _choice(name: str, value: object, kind: Any) -> Iterator[str]:
    if value not in get_args(kind):
        yield f"{name} is {value!r} but must be one of {', '.join(map(str, get_args(kind)))}"


def _at_least(name: str, value: float | None, low: float) -> Iterator[str]:
    if value is not None and not low <= value < math.inf:
        yield f"{name} is {value} but must be at least {low}"


def _within(name: str, value: float, low: float, high: float) -> Iterator[str]:
    if not low <= value <= high:
        yield f"{name} is {value} but must lie in [{low}, {high}]"


def _above(name: str, value: float, low: float) -> Iterator[str]:
    if not low < value < math.inf:
        yield f"{name} is {value} but must be above {low}, and finite"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model. ``preset`` names a GPT-2 shape of ``models/gpt2.py`` (nano, 124M, 350M, 774M, 1.5B, ...)."""

    preset: str = "nano"
    dropout: float = 0.0
    activation_checkpointing: bool = False
    loss_chunks: int = 1  # parts the loss is computed in; more: less memory for logits, one more output product
    pad_vocab_to: int = 1  # round the token table up to a multiple of this (64 or 128: faster on a GPU)

    def problems(self) -> Iterator[str]:
        yield from _within("dropout", self.dropout, 0.0, 0.9)
        yield from _at_least("loss_chunks", self.loss_chunks, 1)
        yield from _at_least("pad_vocab_to", self.pad_vocab_to, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which tokens. ``corpus``: ``stdlib``, ``installed`` (all installed packages), ``random``, or a folder of text."""

    corpus: str = "stdlib"
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int | None = None  # bpe only; bytes have 256 + 1 for the end of a file
    heldout_tokens: int = 65_536  # tokens in each of the three held-out splits
    max_bytes: int | None = None  # read at most this much text
    cache_dir: str | None = None  # default: $HYBRID_RAY_CACHE, else ~/.cache/hybrid_ray

    def problems(self) -> Iterator[str]:
        yield from _choice("tokenizer", self.tokenizer, Literal["bytes", "bpe"])
        yield from _at_least("heldout_tokens", self.heldout_tokens, 1024)
        yield from _at_least("max_bytes", self.max_bytes, 100_000)
        if self.tokenizer == "bpe":
            yield from _within("vocab_size", self.vocab_size or 50_257, 300, 50_257)
        elif self.vocab_size is not None:
            yield f"vocab_size is {self.vocab_size} but the bytes tokenizer has a fixed one: use tokenizer: bpe"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How one run trains. ``steps`` are nominal steps: real and predicted ones together."""

    steps: int = 600
    batch_size: int = 16  # sequences a step, over all workers and micro-batches
    micro_batch_size: int | None = None  # sequences a forward on one worker; None: batch_size / workers
    sequence_length: int = 64
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 3e-3
    min_lr_ratio: float = 0.1
    lr_warmup_fraction: float = 0.05  # of the run, so that a shorter run keeps the shape of its schedule
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how several workers train one model; fsdp shards it (FSDP2)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto in a job: cuda where workers get GPUs, else cpu
    threads: int = 1  # CPU threads of one worker
    evaluations: int = 8  # evaluation points, evenly over the run, the last at its end
    calibration_steps: int = 20  # plain steps timed first, then undone: a check on what the run's own steps cost
    checkpoint_every: int = 0  # nominal steps between checkpoints; 0: none
    prune_score: PruneScore = "bitter7"  # adamwprune only, as the next three (optim/prune.py)
    prune_sparsity: float = 0.5
    prune_start_fraction: float = 0.1  # of the run: where the sparsity ramp starts
    prune_end_fraction: float = 0.75  # of the run: where it reaches prune_sparsity

    def problems(self) -> Iterator[str]:
        yield from _at_least("steps", self.steps, 10)
        yield from _at_least("batch_size", self.batch_size, 1)
        yield from _at_least("micro_batch_size", self.micro_batch_size, 1)
        yield from _at_least("sequence_length", self.sequence_length, 8)
        yield from _choice("optimizer", self.optimizer, OptimizerName)
        yield from _above("learning_rate", self.learning_rate, 0.0)
        yield from _within("min_lr_ratio", self.min_lr_ratio, 0.0, 1.0)
        yield from _within("lr_warmup_fraction", self.lr_warmup_fraction, 0.0, 0.5)
        yield from _choice("schedule", self.schedule, Literal["cosine", "linear", "constant"])
        yield from _at_least("weight_decay", self.weight_decay, 0.0)
        for beta in self.betas:
            yield from _within("betas", beta, 0.0, 0.99999)
        if self.clip_norm is not None:
            yield from _above("clip_norm", self.clip_norm, 0.0)
        yield from _choice("precision", self.precision, Literal["fp32", "bf16"])
        yield from _choice("parallel", self.parallel, Literal["ddp", "fsdp"])
        yield from _choice("device", self.device, Literal["auto", "cpu", "cuda"])
        yield from _at_least("threads", self.threads, 1)
        yield from _within("evaluations", self.evaluations, 1, max(1, self.steps))
        yield from _at_least("calibration_steps", self.calibration_steps, 5)
        yield from _at_least("checkpoint_every", self.checkpoint_every, 0)
        yield from _choice("prune_score", self.prune_score, PruneScore)
        yield from _within("prune_sparsity", self.prune_sparsity, 0.0, 0.99)
        yield from _within("prune_start_fraction", self.prune_start_fraction, 0.0, 1.0)
        yield from _within("prune_end_fraction", self.prune_end_fraction, self.prune_start_fraction, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """The hybrid method (docs/method.md, section 1). Every field has a default; the three tuned knobs come first.

    A cycle is Full (``full_steps`` real steps), Predict (``prediction_horizon`` predicted steps, a real step after
    every ``correction_interval`` of them), Correct (``correct_steps`` real steps). ``predictor="off"`` trains plainly.
    """

    confidence_threshold: float = 0.3
    prediction_horizon: int = 5
    correction_interval: int = 0  # 0: no micro-corrections
    warmup_steps: int = 100
    full_steps: int = 10
    correct_steps: int = 5
    predictor: PredictorName = "ema_nesterov"
    gain: float = 1.0  # a predicted step moves by gain x the averaged displacement of a real step
    time_constant: float = 100.0  # real steps; of the displacement average (ema_nesterov)
    outer_lr: float = 0.6  # snoo
    outer_momentum: float = 0.5  # snoo
    fit_windows: int = 4  # linear_fit: snapshots in one fit
    couple_lr: bool = True  # scale predicted steps by lr / lr_max
    off_fraction: float = 0.25  # no predictions in this last part of the run (needs total_steps)
    total_steps: int | None = None  # nominal steps of the whole run
    horizon_mode: Literal["fixed", "scaled"] = "fixed"
    # How fast the length of predictions follows what real steps then do (hybrid/corrector.py, with what it brought).
    # It lowers the error of the next prediction. Off (0) because it steers the length whatever ``gain`` says.
    residual_feedback: float = 0.0
    divergence_sigma: float = 2.5  # loss z-score that is Caution
    sample_one_in: int = 64  # coordinates that measures and residuals look at
    buffer_dtype: Literal["float32", "bfloat16"] = "float32"
    buffer_device: Literal["model", "host"] = "model"  # host: pinned memory where there is a GPU
    accumulate: int = 1  # micro-batches a real step
    clip_norm: float | None = None
    seed: int = 0

    @property
    def cycle_steps(self) -> int:
        """Nominal steps of one whole cycle, micro-corrections included."""
        micro = (self.prediction_horizon - 1) // self.correction_interval if self.correction_interval else 0
        return self.full_steps + self.prediction_horizon + micro + self.correct_steps

    def problems(self) -> Iterator[str]:
        yield from _within("confidence_threshold", self.confidence_threshold, 0.0, 1.0)
        yield from _at_least("prediction_horizon", self.prediction_horizon, 1)
        yield from _at_least("correction_interval", self.correction_interval, 0)
        yield from _at_least("warmup_steps", self.warmup_steps, 0)
        yield from _at_least("full_steps", self.full_steps, 1)
        yield from _at_least("correct_steps", self.correct_steps, 0)
        yield from _choice("predictor", self.predictor, PredictorName)
        yield from _at_least("gain", self.gain, 0.0)
        yield from _above("time_constant", self.time_constant, 0.0)
        yield from _above("outer_lr", self.outer_lr, 0.0)
        yield from _within("outer_momentum", self.outer_momentum, 0.0, 0.999)
        yield from _at_least("fit_windows", self.fit_windows, 2)
        yield from _within("off_fraction", self.off_fraction, 0.0, 1.0)
        yield from _at_least("total_steps", self.total_steps, 1)
        yield from _choice("horizon_mode", self.horizon_mode, Literal["fixed", "scaled"])
        yield from _within("residual_feedback", self.residual_feedback, 0.0, 1.0)
        yield from _above("divergence_sigma", self.divergence_sigma, 0.0)
        yield from _at_least("sample_one_in", self.sample_one_in, 1)
        yield from _choice("buffer_dtype", self.buffer_dtype, Literal["float32", "bfloat16"])
        yield from _choice("buffer_device", self.buffer_device, Literal["model", "host"])
        yield from _at_least("accumulate", self.accumulate, 1)
        if self.clip_norm is not None:
            yield from _above("clip_norm", self.clip_norm, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What a trial is scored by (docs/method.md, section 4)."""

    mode: Literal["score", "net", "pareto"] = "score"
    penalty_weight: float = 20.0
    tolerance: float = 0.02
    max_degradation: float = 0.25

    def problems(self) -> Iterator[str]:
        yield from _choice("mode", self.mode, Literal["score", "net", "pareto"])
        yield from _at_least("penalty_weight", self.penalty_weight, 0.0)
        yield from _at_least("tolerance", self.tolerance, 0.0)
        yield from _above("max_degradation", self.max_degradation, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How the three knobs are searched. ``space`` names a module of ``tune_spaces``."""

    space: str = "three_knobs"
    trials: int = 16
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: int = 8  # random trials before tpe models anything, the presets counted in
    scheduler: Literal["asha", "median", "none"] = "asha"
    grace_steps: int | None = None  # None: warmup + full + 3 of the longest cycles among the presets
    reduction_factor: int = 3
    seed: int = 0
    max_failures: int = 1  # retries of a trial whose worker died
    stop_after_failures: int = 5  # failed trials in a row that end the search

    def problems(self) -> Iterator[str]:
        yield from _at_least("trials", self.trials, 1)
        yield from _choice("sampler", self.sampler, Literal["tpe", "random"])
        yield from _at_least("startup_trials", self.startup_trials, 0)
        yield from _choice("scheduler", self.scheduler, Literal["asha", "median", "none"])
        yield from _at_least("grace_steps", self.grace_steps, 1)
        yield from _at_least("reduction_factor", self.reduction_factor, 2)
        yield from _at_least("max_failures", self.max_failures, 0)
        yield from _at_least("stop_after_failures", self.stop_after_failures, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierConfig:
    """Real-steps-only runs of several lengths, each with its schedule fully decayed. 1.0 is the baseline itself."""

    lengths: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0, 1.1)

    def problems(self) -> Iterator[str]:
        for length in self.lengths:
            yield from _within("lengths", length, 0.05, 4.0)
        if len(set(self.lengths)) < 5 or 1.0 not in self.lengths:
            yield f"lengths is {list(self.lengths)} but needs at least 5 lengths, 1.0 (the baseline) among them"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmConfig:
    """The best trials again, on fresh seeds and the confirm split, beside controls that cost the same."""

    best: int = 2  # 0: no confirmation
    seeds: int = 3
    arms: tuple[ControlArm, ...] = ("equal_steps", "placebo")

    def problems(self) -> Iterator[str]:
        yield from _at_least("best", self.best, 0)
        yield from _at_least("seeds", self.seeds, 3)
        for arm in self.arms:
            yield from _choice("arms", arm, ControlArm)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """``hybrid-ray compare``: the job's own hybrid settings against the controls, over seeds, with statistics."""

    looks: tuple[int, ...] = (3, 6)  # seeds at which the result is looked at; it stops at the first look that decides
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    arms: tuple[ControlArm, ...] = get_args(ControlArm)
    tune_baseline: bool = True  # the baseline's learning rate first; every arm then uses the best one
    lr_factors: tuple[float, ...] = (0.5, 1.0, 2.0)  # of train.learning_rate
    effect: float = 0.03  # the relative effect that the number of seeds is planned for

    def problems(self) -> Iterator[str]:
        if not self.looks or self.looks[0] < 3 or any(a >= b for a, b in pairwise(self.looks)):
            yield f"looks is {list(self.looks)} but must be rising numbers of seeds, the first at least 3"
        yield from _choice("spending", self.spending, Literal["obrien_fleming", "pocock"])
        for arm in self.arms:
            yield from _choice("arms", arm, ControlArm)
        for factor in self.lr_factors:
            yield from _above("lr_factors", factor, 0.0)
        if self.tune_baseline and len(set(self.lr_factors)) < 2:
            yield f"lr_factors is {list(self.lr_factors)} but tuning needs at least 2 different factors"
        yield from _above("effect", self.effect, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one run gets. Several workers: a Ray Train TorchTrainer per run."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float | None = None  # None: 1 with device cuda, or auto and a GPU here for each worker; else 0
    max_concurrent: int | None = None  # None: as many as fit; in a search a quarter of the trials at most, or 2
    address: str = "local"  # "local", or the address of a running cluster ("auto" where the driver runs inside it)

    def problems(self) -> Iterator[str]:
        yield from _at_least("workers", self.workers, 1)
        yield from _at_least("cpus_per_worker", self.cpus_per_worker, 1)
        yield from _at_least("gpus_per_worker", self.gpus_per_worker, 0.0)
        yield from _at_least("max_concurrent", self.max_concurrent, 1)

    @property
    def gpus(self) -> float:
        """Of one worker; 0 while nothing is decided (``tune/planner.py``'s `settle` decides)."""
        return self.gpus_per_worker or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """When the search stops asking for new trials. None: no limit."""

    minutes: float | None = None
    gpu_hours: float | None = None

    def problems(self) -> Iterator[str]:
        yield from _at_least("minutes", self.minutes, 0.1)
        yield from _at_least("gpu_hours", self.gpu_hours, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """A whole job, as written in ``jobs/*.yaml``."""

    name: str = "study"
    seed: int = 0
    studies_dir: str = "studies"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    frontier: FrontierConfig = field(default_factory=FrontierConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def run(self, *, arm: Arm = "hybrid", seed: int | None = None, hybrid: HybridConfig | None = None) -> "RunConfig":
        """One run of this job. Seed and hybrid settings default to the job's own."""
        settings = hybrid or self.hybrid
        return RunConfig(
            arm=arm,
            seed=self.seed if seed is None else seed,
            model=self.model,
            data=self.data,
            train=self.train,
            hybrid=settings,
            workers=self.resources.workers,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One training of one model with one seed, whatever the arm. All that defines the weights that come out."""

    arm: Arm = "hybrid"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
    replay: str | None = None  # result.json of a hybrid run whose phase decisions and displacement norms to follow
    workers: int = 1

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one forward on one worker."""
        return self.train.micro_batch_size or self.train.batch_size // self.workers

    @property
    def accumulate(self) -> int:
        """Micro-batches of one worker in one real step: accumulate x workers x micro-batch = batch size."""
        return self.train.batch_size // (self.workers * self.micro_batch_size)

    @property
    def trainer_settings(self) -> HybridConfig:
        """The hybrid settings with what the run itself decides filled in."""
        return replace(
            self.hybrid,
            accumulate=self.accumulate,
            clip_norm=self.train.clip_norm,
            total_steps=self.train.steps,
            seed=self.seed,
        )
