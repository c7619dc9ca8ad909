"""Rules between settings: values that are allowed one by one but not together."""

from collections.abc import Iterator
from dataclasses import replace

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.search import SearchConfig
from hybrid_ray.config.task import our_task
from hybrid_ray.config.training import DataConfig, ModelConfig

__all__ = ["job_problems"]


def job_problems(job: JobConfig) -> Iterator[str]:
    """Problems of a job whose settings are valid one by one: sentences with the full path of the setting."""
    yield from _task_problems(job)
    yield from _train_problems(job)
    yield from _search_problems(job)
    yield from _batch_problems(job)
    yield from _predictor_problems(job)
    yield from _memory_problems(job)
    yield from _compare_problems(job)
    yield from _peer_problems(job)
    hybrid = job.hybrid
    if hybrid.warmup_steps + hybrid.full_steps >= job.train.steps:
        yield (
            f"hybrid.warmup_steps + hybrid.full_steps is {hybrid.warmup_steps + hybrid.full_steps} but train.steps is "
            f"{job.train.steps}: nothing would ever be predicted; lower the first or raise train.steps"
        )


def _train_problems(job: JobConfig) -> Iterator[str]:
    train = job.train
    if train.evaluations > train.steps:
        yield f"train.evaluations is {train.evaluations} but must be at most train.steps ({train.steps})"
    if train.prune_end_fraction < train.prune_start_fraction:
        yield (
            f"train.prune_end_fraction is {train.prune_end_fraction} but must be at least train.prune_start_fraction "
            f"({train.prune_start_fraction})"
        )


def _search_problems(job: JobConfig) -> Iterator[str]:
    """Settings of the built-in samplers and schedulers, which a user's own does not read."""
    named = job.search.named
    readers = {"startup_trials": "sampler", "grace_steps": "scheduler", "reduction_factor": "scheduler"}
    for name, place in readers.items():
        value = getattr(job.search, name)
        if place in named and value != getattr(SearchConfig(), name):
            yield f"search.{name} is {value} but {named[place]} does not read it: give it options in search.{place}"


def _compare_problems(job: JobConfig) -> Iterator[str]:
    compare = job.compare
    if compare.tune_baseline and len(set(compare.lr_factors)) < 2:
        yield (
            f"compare.lr_factors is {list(compare.lr_factors)} but tuning needs at least 2 different factors: add one, "
            "or set compare.tune_baseline: false"
        )


def _predictor_problems(job: JobConfig) -> Iterator[str]:
    predictor, train = job.hybrid.predictor.name, job.train
    if predictor == "slow_momentum" and job.hybrid.horizon_mode == "scaled":
        yield ("hybrid.horizon_mode is 'scaled' but the jumps of slow_momentum do not depend on the horizon: use fixed")
    yield from (f"hybrid.{problem}" for problem in job.hybrid.problems())
    if predictor in ("none", "random", "reversed"):
        why = "predicts nothing" if predictor == "none" else "is a control that replays another run"
        ours = "slow_momentum, ema_nesterov, snoo, linear_fit or momentum"
        yield f"hybrid.predictor is {predictor!r}, which {why}: a job needs {ours}"
    if predictor == "momentum" and (train.optimizer == "sgd" or train.betas[0] == 0):
        yield "hybrid.predictor is 'momentum' but the optimizer keeps no momentum: use adamw, betas above 0"
    if train.optimizer == "schedule_free":
        yield (
            "train.optimizer is 'schedule_free', which computes the weights from its own state and would undo "
            "predictions: use another optimizer, or list it in compare.peers"
        )
    if predictor == "slow_momentum" and train.optimizer in ("adamw8bit", "adamwprune"):
        yield (
            f"hybrid.predictor is 'slow_momentum' but train.optimizer is {train.optimizer!r}, for which it has no "
            "rule: use adamw, adam, adamwspam, ademamix, muon or sgd"
        )
    if predictor == "momentum" and train.optimizer == "adamw8bit":
        yield (
            "hybrid.predictor is 'momentum' but train.optimizer is 'adamw8bit', whose 8-bit momentum it can't read: "
            "use adamw"
        )


def _task_problems(job: JobConfig) -> Iterator[str]:
    """Model and data must belong to the same built-in task, which must read every setting that was changed.

    A user's own task is checked when it is loaded (tasks/load.py).
    """
    model, data = job.model, job.data
    if job.task.factory is None and job.task.options:
        yield (
            f"task.options is {dict(job.task.options)!r} but there is no task.factory to read them: built-in tasks "
            "take their settings from model and data"
        )
    if data.tokenizer == "bytes" and data.vocab_size is not None:
        yield f"data.vocab_size is {data.vocab_size} but the bytes tokenizer always has 257: use tokenizer: bpe"
    ours = our_task(job.task, model, data)
    if ours is None:
        return
    of_model = our_task(job.task, model, DataConfig())
    if of_model and of_model != our_task(job.task, ModelConfig(), data):
        yield (
            f"model.preset is {model.preset!r} and data.corpus is {data.corpus!r} but that model reads {of_model.reads}"
        )
        return
    for place, why in ours.unread.items():
        section, _, name = place.partition(".")
        value = getattr(getattr(job, section), name)
        if value != getattr(getattr(JobConfig(), section), name):
            yield f"{place} is {value!r} but {why}: leave it out"
    if job.train.parallel == "fsdp" and not ours.sharded:
        yield f"train.parallel is 'fsdp' but the {model.preset} has no blocks to shard: use ddp"


def _memory_problems(job: JobConfig) -> Iterator[str]:
    train = job.train
    if train.weights == "bf16" and train.precision != "bf16":
        yield (
            f"train.weights is 'bf16' but train.precision is {train.precision!r}: the forward pass can't be more "
            "precise than the weights; set train.precision: bf16"
        )
    if train.optimizer == "adamw8bit" and train.optimizer_device == "host":
        yield (
            "train.optimizer_device is 'host' but train.optimizer is 'adamw8bit', whose compiled step needs its state "
            "on the model's device: use optimizer_device: model (the state takes 2 bytes per parameter), or adamw"
        )
    if (train.own_optimizer or train.optimizer in ("muon", "muon_ademamix", "schedule_free")) and (
        train.optimizer_device == "host" or train.weights == "bf16"
    ):
        yield (
            f"train.optimizer is {train.optimizer_name!r}, which needs fp32 weights on the model's device: use "
            "optimizer_device: model and weights: fp32"
        )
    if train.optimizer in ("muon", "muon_ademamix") and train.parallel == "fsdp" and job.resources.workers > 1:
        yield (
            f"train.optimizer is {train.optimizer!r} but train.parallel is 'fsdp': it needs each matrix as a whole; "
            "use parallel: ddp"
        )
    if (
        job.hybrid.predictor.options.get("matrices") == "orthogonal"
        and train.parallel == "fsdp"
        and job.resources.workers > 1
    ):
        yield (
            "hybrid.predictor.matrices is 'orthogonal' but train.parallel is 'fsdp': it needs each matrix as a whole; "
            "use parallel: ddp, or matrices: second_moment"
        )
    if train.optimizer == "adamwprune" and train.parallel == "fsdp" and job.resources.workers > 1:
        yield (
            "train.optimizer is 'adamwprune' but train.parallel is 'fsdp': its threshold is computed from all "
            "weights in one place; use parallel: ddp"
        )
    if job.hybrid.offload_optimizer and train.optimizer_device == "host":
        yield (
            "hybrid.offload_optimizer is true but train.optimizer_device is 'host': the state is already in host "
            "memory; leave one of them out"
        )


def _peer_problems(job: JobConfig) -> Iterator[str]:
    peers, own = job.compare.peers, set(_memory_problems(job))
    if job.train.optimizer in peers or len(set(peers)) < len(peers):
        yield (
            f"compare.peers is {list(peers)} but must name other optimizers than the job's own "
            f"({job.train.optimizer}), each once"
        )
    for peer in peers:
        with_peer = replace(job, train=replace(job.train, optimizer=peer))
        yield from (f"compare.peers: {found}" for found in _memory_problems(with_peer) if found not in own)


def _batch_problems(job: JobConfig) -> Iterator[str]:
    train, workers = job.train, job.resources.workers
    ours = our_task(job.task, job.model, job.data)
    if ours and ours.sequences and job.data.heldout_tokens < 8 * train.sequence_length:
        yield (
            f"data.heldout_tokens is {job.data.heldout_tokens} but must be at least 8 x train.sequence_length "
            f"({8 * train.sequence_length}): a held-out loss is a mean over sequences"
        )
    micro = train.micro_batch_size
    if train.batch_size % workers:
        yield (
            f"train.batch_size is {train.batch_size} but must be a multiple of resources.workers ({workers}): "
            f"try {workers * max(1, train.batch_size // workers)}"
        )
    elif isinstance(micro, int) and train.batch_size % (max(1, micro) * workers):
        yield (
            f"train.micro_batch_size is {micro} but micro_batch_size x workers ({micro * workers}) must divide "
            f"train.batch_size ({train.batch_size}): the effective batch size is not changed silently"
        )
