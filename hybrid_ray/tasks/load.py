"""The task of a run: one of ours, or a user's own class by ``package.module:Name``, checked before anything starts."""

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from hybrid_ray.config import DataConfig, JobConfig, ModelConfig, RunConfig, TaskConfig, TrainConfig
from hybrid_ray.config.task import module_folder, our_task, task_words
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.optim import build_optimizer
from hybrid_ray.tasks.sampling import own_draws
from hybrid_ray.tasks.task import Part, Task

__all__ = ["check_gradient", "checked_datasets", "load_task", "optimizer_of", "source_of", "words_of"]

_REQUIRED: tuple[Part, ...] = ("train", "val", "test")
_MUST_WRITE = ("build_model", "datasets", "loss")
_NO_RESULT = {"data.cache_dir"}  # where runs are kept, too: of any task


def load_task(run: RunConfig) -> Task:
    """The task of a run, its options checked. Data are not made yet.

    Raises:
        ConfigError: all that is wrong with the factory, its options, or settings that it does not read.
    """
    ours = our_task(run.task, run.model, run.data)
    if ours is None:
        train = TrainConfig(sequence_length=run.train.sequence_length)
        return _own_task(RunConfig(task=run.task, model=run.model, data=run.data, train=train), run.task.folder)
    kind = _named(importlib.import_module(ours.factory.partition(":")[0]), ours.factory)
    task: Task = kind(**kind.arguments(run))
    return task


def optimizer_of(task: Task, model: nn.Module, settings: TrainConfig, *, seed: int = 0) -> Optimizer:
    """The task's own optimizer, or the one that the settings name.

    Args:
        seed: of the rounding of bf16 weights; the same on all ranks.
    """
    own = task.optimizer(model, settings)
    return build_optimizer(model, settings, seed=seed) if own is None else own


def words_of(job: JobConfig) -> dict[str, str]:
    """What reports call the job's model, data, batch and loss."""
    task = load_task(job.run())
    return task_words(job.task, job.model, job.data, job.train.sequence_length, unit=task.unit, measure=task.measure)


def source_of(config: TaskConfig) -> Path | None:
    """The file of a user's own task; None of ours, or where the module has no file."""
    if config.factory is None:
        return None
    file = getattr(_module(config.factory, config.folder), "__file__", None)
    return None if file is None else Path(file)


@lru_cache(maxsize=4)
def _own_task(run: RunConfig, folder: str | None) -> Task:
    """Made once a process, since its data may take long to make. ``run``: of its settings, what a task can read."""
    factory = str(run.task.factory)
    kind = _named(_module(factory, folder), factory)
    problems = [*_kind_problems(kind, factory)]
    if problems:
        raise ConfigError(problems)
    arguments = {**kind.arguments(run), **run.task.options}
    problems += [*_option_problems(kind, factory, arguments), *_unread_settings(kind, run)]
    if problems:
        raise ConfigError(problems)
    with _told_in_one_line(f"making {factory}"):
        task: Task = kind(**arguments)
    return task


def _module(factory: str, folder: str | None) -> Any:
    """Import the module of a factory, from its folder first."""
    name = factory.partition(":")[0]
    found = module_folder(factory, [*([Path(folder)] if folder else []), Path.cwd()])
    if found is not None:
        _import_from(name, found)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"task.factory is {factory!r} but importing {name} fails: {error}; install what it imports"
            ) from error
        raise ConfigError(
            f"task.factory is {factory!r} but there is no module {name}: put {name.replace('.', '/')}.py next to the "
            "job file or in the working directory, or install it"
        ) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise ConfigError(f"task.factory is {factory!r} but importing {name} fails: {_one_line(error)}") from error


def _import_from(name: str, folder: str) -> None:
    """Have the next import of a module find it in a folder, whatever module of that name was imported before."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    top = name.partition(".")[0]
    loaded = sys.modules.get(top)
    places = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
    if loaded is not None and not any(place and Path(place).is_relative_to(folder) for place in places):
        for other in [known for known in sys.modules if known == top or known.startswith(f"{top}.")]:
            del sys.modules[other]
        sys.path.remove(folder)
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


def _named(module: Any, factory: str) -> Any:
    name = factory.partition(":")[2]
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, vars(module), n=1)
        mend = f"did you mean {close[0]!r}?" if close else f"define it in {getattr(module, '__file__', module)}"
        raise ConfigError(f"task.factory is {factory!r} but {module.__name__} has no {name}: {mend}")
    return getattr(module, name)


def _kind_problems(kind: Any, factory: str) -> Iterator[str]:
    if not isinstance(kind, type) or not issubclass(kind, Task):
        name = factory.partition(":")[2]
        yield f"task.factory is {factory!r} but that is no subclass of hybrid_ray.Task: write class {name}(Task)"
        return
    missing = [name for name in _MUST_WRITE if getattr(kind, name) is getattr(Task, name)]
    if missing:
        yield f"task.factory is {factory!r} but the class has no {', no '.join(missing)}: a task must define them"


def _option_problems(kind: Any, factory: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    signature = inspect.signature(kind)
    parameters = signature.parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = [parameter.name for parameter in parameters]
        for name in [name for name in arguments if name not in known]:
            close = difflib.get_close_matches(name, known, n=1)
            mend = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(known) or 'none'}"
            yield f"task.options.{name} is not an option of {factory}: {mend}"
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if required and parameter.name not in arguments:
            yield f"task.options has no {parameter.name} but {factory} needs it: add it"


def _unread_settings(kind: type[Task], run: RunConfig) -> Iterator[str]:
    """Settings of ``model``, ``data`` and the sequences that say something only to a task that reads them."""
    usual = RunConfig()
    places = [f"model.{name}" for name in ModelConfig.__slots__] + [f"data.{name}" for name in DataConfig.__slots__]
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
    """Take the gradient of one example's loss; the model that it was taken with. Raises `ConfigError` if it fails."""
    name = type(task).__name__
    with own_draws(seed=0), _told_in_one_line(f"one training step of {name}"):
        model = task.build_model()
        torch.autograd.backward(task.loss(model, task.sampler(batch_size=1, seed=0).next()))
    return model


def checked_datasets(task: Task) -> Mapping[Part, Dataset[Any]]:
    """The task's data sets. Raises `ConfigError` with all that keeps a run from reading them."""
    name = type(task).__name__
    with _told_in_one_line(f"{name}.datasets()"):
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
        elif not len(dataset):
            problems.append(f"{name}.datasets()[{part!r}] is empty: give it at least one item")
    if problems:
        raise ConfigError(problems)
    return cast(Mapping[Part, Dataset[Any]], parts)


@contextmanager
def _told_in_one_line(doing: str) -> Iterator[None]:
    """What a user's code raises, as one sentence with the place; the traceback goes along as its cause."""
    try:
        yield
    except HybridRayError:
        raise
    except Exception as error:
        raise ConfigError(f"{doing} fails: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    ours = str(Path(__file__).parents[1])
    known = ("site-packages", ours)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in known)
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"
