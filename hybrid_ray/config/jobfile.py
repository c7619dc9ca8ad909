"""Job files: YAML in, a checked `JobConfig` out, every problem listed at once and nothing started.

A wrong job raises one `ConfigError` whose problems name the place (``train.steps``), the value, the rule and, for an
unknown key, the key that was probably meant.
"""

import contextlib
import dataclasses
import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from hybrid_ray.config import DataConfig, JobConfig, ModelConfig, PublishedName, TaskConfig
from hybrid_ray.config.checks import choice
from hybrid_ray.config.named import module_folder
from hybrid_ray.config.task import our_task
from hybrid_ray.errors import ConfigError

__all__ = ["dump_job", "job_from_dict", "job_problems", "read_job", "variant_jobs"]

# What every configuration of a comparison shares, whatever its variants change.
_SHARED = ("train.steps", "train.device", "train.threads")


def read_job(path: Path | str, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a job file, apply ``path.to.key=value`` overrides, check everything.

    Raises:
        ConfigError: the file is missing or not YAML, or holds unknown keys, wrong types or impossible values.
    """
    source = Path(path)
    if not source.is_file():
        raise ConfigError(f"{source} is not a file: give the path of a job such as jobs/local.yaml")
    try:
        data = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{source} holds a {type(data).__name__} but a job is a mapping of settings")
    data.setdefault("name", source.stem)
    problems = [problem for text in overrides for problem in _override(data, text)]
    return _located(job_from_dict(data, problems), source.absolute().parent)


def _located(job: JobConfig, beside: Path) -> JobConfig:
    """The job with the folders of the modules that it names filled in, unless they are known and still there."""
    there: list[str | Path] = [*job.folders, beside, Path.cwd()]
    found = (module_folder(name, there) for name in job.named.values())
    return replace(job, folders=tuple(dict.fromkeys(folder for folder in found if folder is not None)))


def job_from_dict(data: Mapping[str, Any], problems: Sequence[str] = ()) -> JobConfig:
    """A checked job from plain values. ``problems`` found before are listed with the new ones."""
    found = list(problems)
    job: JobConfig = _build(JobConfig, data, "", found)
    found.extend(job_problems(job))
    _variants(job, found)
    if found:
        raise ConfigError(found)
    return job


def variant_jobs(job: JobConfig) -> dict[str, JobConfig]:
    """The job as each of ``compare.variants`` has it, by name, checked as a job is.

    Raises:
        ConfigError: all that is wrong with all of them.
    """
    found: list[str] = []
    jobs = _variants(job, found)
    if found:
        raise ConfigError(found)
    return jobs


def dump_job(job: JobConfig) -> str:
    """The job as YAML that `read_job` reads back to an equal job."""
    plain = dataclasses.asdict(job)
    if job.task == TaskConfig():
        del plain["task"]
    if not job.folders:
        del plain["folders"]
    return yaml.safe_dump(_listed(plain), sort_keys=False, allow_unicode=True)


def _variants(job: JobConfig, problems: list[str]) -> dict[str, JobConfig]:
    """The variants of a job. What is wrong with them, and is not the job's own fault, is added to ``problems``."""
    jobs, own = {}, set(job_problems(job))
    for name, settings in job.compare.variants.items():
        found: list[str] = []
        if not re.fullmatch(r"[a-z0-9_]+", name) or name in ("baseline", "hybrid") or name.endswith("_plain"):
            found.append(f"the name {name!r} must match [a-z0-9_]+, be neither baseline nor hybrid, not end in _plain")
        data = dataclasses.asdict(replace(job, compare=replace(job.compare, variants={})))
        for path, value in settings.items():
            wrong = _variant_path(path, value)
            found.extend(wrong)
            if not wrong:
                section, _, key = path.partition(".")
                data[section][key] = value
        jobs[name] = _build(JobConfig, data, "", found)
        found.extend(problem for problem in job_problems(jobs[name]) if problem not in own)
        problems.extend(f"compare.variants.{name}: {problem}" for problem in found)
    return jobs


def _variant_path(path: str, value: Any) -> list[str]:
    """What keeps a setting from being one of a variant."""
    if path.partition(".")[0] not in ("model", "train", "hybrid") or path.count(".") != 1:
        return [
            f"{path} is not a setting of model, train or hybrid: seeds, data and statistics are the comparison's own"
        ]
    if path in _SHARED:
        return [f"{path} is the same in all configurations that are compared: set it for the whole job"]
    if path == "train.micro_batch_size" and value == "auto":
        return [f"{path} is 'auto', which is resolved for the job as a whole: give the variant a number"]
    return []


def job_problems(job: JobConfig) -> Iterator[str]:
    """What is wrong with a job: each section by itself, then the sections together."""
    for field in dataclasses.fields(job):
        section = getattr(job, field.name)
        if dataclasses.is_dataclass(section):
            yield from (f"{field.name}.{text}" for text in section.problems())  # type: ignore[union-attr]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", job.name) or job.name.startswith("."):
        yield f"name is {job.name!r} but must match [A-Za-z0-9._-]+ and not begin with a dot: it names a folder"
    if job.published is not None:
        yield from choice("published", job.published, PublishedName)
    if job.seed < 0:
        yield f"seed is {job.seed} but must be at least 0"
    yield from _task_problems(job)
    yield from _batch_problems(job)
    yield from _predictor_problems(job)
    yield from _memory_problems(job)
    yield from _peer_problems(job)
    hybrid = job.hybrid
    if hybrid.warmup_steps + hybrid.full_steps >= job.train.steps:
        yield (
            f"hybrid.warmup_steps + hybrid.full_steps is {hybrid.warmup_steps + hybrid.full_steps} but train.steps is "
            f"{job.train.steps}: nothing would ever be predicted; lower the first or raise train.steps"
        )


def _predictor_problems(job: JobConfig) -> Iterator[str]:
    predictor, train = job.hybrid.predictor, job.train
    if predictor in ("none", "random", "reversed"):
        why = "predicts nothing" if predictor == "none" else "is a control that replays another run"
        ours = "slow_momentum, ema_nesterov, snoo, linear_fit or momentum"
        yield f"hybrid.predictor is {predictor!r}, which {why}: a job needs {ours}"
    if predictor == "momentum" and (train.optimizer == "sgd" or train.betas[0] == 0):
        yield "hybrid.predictor is 'momentum' but the optimizer keeps no momentum: use adamw, betas above 0"
    if train.optimizer == "schedule_free":
        yield (
            "train.optimizer is 'schedule_free', which computes the weights from a state of its own and would undo "
            "predictions: it can only be compared with"
        )
    if predictor == "slow_momentum" and train.optimizer in ("adamw8bit", "adamwprune"):
        yield (
            f"hybrid.predictor is 'slow_momentum' but train.optimizer is {train.optimizer!r}, for which it has no "
            "rule: use adamw, adam, adamwspam, ademamix, muon or sgd"
        )
    if predictor == "momentum" and train.optimizer == "adamw8bit":
        yield "hybrid.predictor is 'momentum' but train.optimizer is 'adamw8bit', whose codes it can't read: use adamw"


def _task_problems(job: JobConfig) -> Iterator[str]:
    """Model and data must belong to one task of ours; each has settings that say nothing to the others.

    What is wrong with a user's own task is found when it is loaded (tasks/load.py).
    """
    model, data = job.model, job.data
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
            f"train.weights is 'bf16' but train.precision is {train.precision!r}: forwards can't be more precise than "
            "the weights they read; set train.precision: bf16"
        )
    if train.optimizer == "adamw8bit" and train.optimizer_device == "host":
        yield (
            "train.optimizer_device is 'host' but train.optimizer is 'adamw8bit', whose compiled step reads state on "
            "the model's device: use optimizer_device: model (its state takes 2 bytes a parameter), or adamw"
        )
    if train.optimizer in ("muon", "schedule_free") and (train.optimizer_device == "host" or train.weights == "bf16"):
        yield (
            f"train.optimizer is {train.optimizer!r}, which steps fp32 weights on the model's device only: use "
            "optimizer_device: model and weights: fp32"
        )
    if train.optimizer == "muon" and train.parallel == "fsdp" and job.resources.workers > 1:
        yield (
            "train.optimizer is 'muon' but train.parallel is 'fsdp': a matrix is orthogonalised whole; use "
            "parallel: ddp"
        )
    if train.optimizer == "adamwprune" and train.parallel == "fsdp" and job.resources.workers > 1:
        yield (
            "train.optimizer is 'adamwprune' but train.parallel is 'fsdp': one threshold for all weights needs them in "
            "one place; use parallel: ddp"
        )
    if job.hybrid.offload_optimizer and train.optimizer_device == "host":
        yield (
            "hybrid.offload_optimizer is true but train.optimizer_device is 'host': the state is there already; leave "
            "one of them out"
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
            f"train.batch_size ({train.batch_size}): the effective batch is never changed in silence"
        )


def _override(data: dict[str, Any], text: str) -> Iterator[str]:
    """Apply one ``path.to.key=value`` in place; yields what is wrong with it."""
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        yield f"--set {text!r} must look like path.to.key=value, for example train.steps=800"
        return
    target = data
    for key in keys[:-1]:
        child = target.setdefault(key, {})
        if not isinstance(child, dict):
            yield f"--set {text!r}: {key} is a single value, not a section"
            return
        target = child
    try:
        target[keys[-1]] = yaml.safe_load(value)
    except yaml.YAMLError:
        yield f"--set {text!r}: the value is not valid YAML"


def _build(kind: type, data: Any, place: str, problems: list[str]) -> Any:
    """One dataclass from a mapping; problems are collected, and the fields they concern keep their defaults."""
    if not isinstance(data, Mapping):
        problems.append(f"{place or 'the job'} is {data!r} but must be a section of settings")
        return kind()
    hints = get_type_hints(kind)
    values = {}
    for key, value in data.items():
        where = f"{place}.{key}" if place else str(key)
        if key not in hints:
            problems.append(_unknown(key, where, list(hints)))
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = _build(hints[key], value, where, problems)
        else:
            try:
                values[key] = _convert(hints[key], value)
            except ValueError:
                problems.append(f"{where} is {value!r} but must be {_describe(hints[key])}")
    return kind(**values)


def _unknown(key: object, where: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    mend = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
    return f"{where} is not a setting: {mend}"


def _convert(hint: Any, value: Any) -> Any:
    """The value as the hinted type, or ValueError. An int serves as a float; nothing else is changed in silence."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _first_that_fits([kind for kind in arguments if kind is not type(None)], value)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is Mapping and isinstance(value, Mapping):
        return {_convert(arguments[0], key): _convert(arguments[1], item) for key, item in value.items()}
    elif hint is Any:
        return value
    elif origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError
        return tuple(_convert(arguments[0], item) for item in value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is float and isinstance(value, str):
        return float(value)  # YAML 1.1 reads 3e-3 as text
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError


def _first_that_fits(kinds: Sequence[Any], value: Any) -> Any:
    for kind in kinds:
        with contextlib.suppress(ValueError):
            return _convert(kind, value)
    raise ValueError


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _describe(kind) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is Mapping:
        return f"a mapping, each entry {_describe(arguments[1])}"
    if origin is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    if hint is Any:
        return "a value"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _listed(value: Any) -> Any:
    """Tuples as lists, all the way down: what YAML's safe dumper knows."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
