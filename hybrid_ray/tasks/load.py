"""Load the task of a run, built-in or a user's class (``package.module:Name``), and check it before the run starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from hybrid_ray.config import JobConfig, RunConfig, TrainConfig
from hybrid_ray.config.named import is_module_name, load_named, one_sentence, option_problems, subclass_problems
from hybrid_ray.config.task import our_task, task_words
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors import load_predictor
from hybrid_ray.optim import build_optimizer, check_own_optimizer
from hybrid_ray.tasks.sampling import own_draws
from hybrid_ray.tasks.task import Part, Task

__all__ = ["check_gradient", "checked_datasets", "checked_model", "load_task", "optimizer_of", "words_of"]

_REQUIRED: tuple[Part, ...] = ("train", "val", "test")
_MUST_WRITE = ("build_model", "datasets", "loss")
_NO_RESULT = {"data.cache_dir"}  # also the folder of cached runs, so it applies to every task


def load_task(run: RunConfig) -> Task:
    """Return the task of a run. Check its options, and the user's own predictor and optimizer if the run has them.

    This does not create the data sets.

    Raises:
        ConfigError: lists the problems with the factory, its options, and settings that the task does not read.
    """
    if is_module_name(run.hybrid.predictor.name):
        load_predictor(run.hybrid.predictor, _folders(run.folders))
    if run.train.own_optimizer:
        check_own_optimizer(run.train, _folders(run.folders))
    ours = our_task(run.task, run.model, run.data)
    if ours is None:
        train = TrainConfig(sequence_length=run.train.sequence_length)
        return _own_task(RunConfig(task=run.task, model=run.model, data=run.data, train=train), run.folders)
    kind = load_named(ours.factory, setting="task.factory")
    task: Task = kind(**kind.arguments(run))
    return task


def optimizer_of(task: Task, model: nn.Module, settings: TrainConfig, *, seed: int = 0) -> Optimizer:
    """The task's own optimizer if it has one, else the optimizer that the settings name.

    Args:
        seed: for the rounding of bf16 weights; it must be the same on all ranks.
    """
    own = task.optimizer(model, settings)
    return build_optimizer(model, settings, seed=seed) if own is None else own


def words_of(job: JobConfig) -> dict[str, str]:
    """The words that reports use for the job's model, data, batch and loss."""
    task = load_task(job.run())
    return task_words(job.task, job.model, job.data, job.train.sequence_length, unit=task.unit, measure=task.measure)


@lru_cache(maxsize=4)
def _own_task(run: RunConfig, folders: tuple[str, ...]) -> Task:
    """Build a user's task, cached per process because its data may be slow to create.

    ``run`` contains only the settings that a task can read.
    """
    factory = str(run.task.factory)
    kind = load_named(factory, setting="task.factory", folders=_folders(folders))
    problems = [*_kind_problems(kind, factory)]
    if problems:
        raise ConfigError(problems)
    arguments = {**kind.arguments(run), **run.task.options}
    problems += [*option_problems(kind, arguments, name=factory, setting="task.options"), *_unread_settings(kind, run)]
    if problems:
        raise ConfigError(problems)
    with one_sentence(f"making {factory}"):
        task: Task = kind(**arguments)
    return task


def _folders(folders: tuple[str, ...]) -> Sequence[str | Path]:
    """The folders that are searched first for a user's module; by default the working directory.

    The list is never empty, so a file in these folders takes precedence over a module of the same name that was
    imported from elsewhere.
    """
    return folders or [Path.cwd()]


def _kind_problems(kind: Any, factory: str) -> Iterator[str]:
    other = [*subclass_problems(kind, Task, name=factory, setting="task.factory", public="hybrid_ray.Task")]
    if other:
        yield from other
        return
    missing = [name for name in _MUST_WRITE if getattr(kind, name) is getattr(Task, name)]
    if missing:
        yield f"task.factory is {factory!r} but the class has no {', no '.join(missing)}: a task must define them"


def _unread_settings(kind: type[Task], run: RunConfig) -> Iterator[str]:
    """Error messages for changed settings (``model``, ``data``, sequence length) that the task does not read."""
    usual = RunConfig()
    places = [f"{name}.{field.name}" for name in ("model", "data") for field in fields(getattr(run, name))]
    for place in [*places, "train.sequence_length"]:
        section, _, name = place.partition(".")
        value = getattr(getattr(run, section), name)
        read = {place, section} & (kind.reads | _NO_RESULT)
        if not read and value != getattr(getattr(usual, section), name):
            yield (
                f"{place} is {value!r} but the task {run.task.factory} does not read it: leave it out, or make it one "
                "of task.options"
            )


def check_gradient(task: Task) -> nn.Module:
    """Compute the gradient of one example's loss and return the model. Raises `ConfigError` if this fails."""
    name = type(task).__name__
    with own_draws(seed=0), one_sentence(f"one training step of {name}"):
        model = checked_model(task)
        torch.autograd.backward(task.loss(model, task.sampler(batch_size=1, seed=0).next()))
    return model


def checked_model(task: Task) -> nn.Module:
    """Build the task's model. Raises `ConfigError` if it can't be trained, or if a second one is not new."""
    name = f"{type(task).__name__}.build_model()"
    model = task.build_model()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returned {type(model).__name__} but must return a torch.nn.Module")
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"{name} has no parameter with requires_grad, so nothing would be trained")
    first = {id(weight) for weight in model.parameters()}
    if any(id(weight) in first for weight in task.build_model().parameters()):
        raise ConfigError(
            f"{name} returned the same parameters twice, so a run would begin with the weights that another one ended "
            "with: build a new model at each call"
        )
    return model


def checked_datasets(task: Task) -> Mapping[Part, Dataset[Any]]:
    """The task's data sets. Raises `ConfigError` with all problems that prevent a run from reading them."""
    name = type(task).__name__
    with one_sentence(f"{name}.datasets()"):
        parts = task.datasets()
    if not isinstance(parts, Mapping):
        raise ConfigError(f"{name}.datasets() returned {type(parts).__name__} but must return a mapping of data sets")
    problems = [
        f"{name}.datasets() has no {part!r}: it must have {', '.join(_REQUIRED)}"
        for part in _REQUIRED
        if part not in parts
    ]
    problems += [
        f"{name}.datasets() has {part!r}, which is no part of the data: {', '.join(get_args(Part))}"
        for part in parts
        if part not in get_args(Part)
    ]
    for part, dataset in parts.items():
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            problems.append(
                f"{name}.datasets()[{part!r}] is {type(dataset).__name__}, which is not map-style: it needs __len__ "
                "and __getitem__"
            )
            continue
        with one_sentence(f"len({name}.datasets()[{part!r}])"):
            empty = not len(dataset)
        if empty:
            problems.append(f"{name}.datasets()[{part!r}] is empty: give it at least one item")
    for first, second in combinations(parts, 2):
        if parts[first] is parts[second]:
            problems.append(
                f"{name}.datasets() has the same data set as {first!r} and as {second!r}, so nothing would be held "
                "out: split the data"
            )
    if problems:
        raise ConfigError(problems)
    return cast(Mapping[Part, Dataset[Any]], parts)
