"""An optimizer that a job names as ``package.module:Name``: a class of torch, or one of the user's, or a function.

It is called with ``params`` (groups with and without weight decay); with ``lr``, ``betas`` and ``weight_decay`` where
it has such parameters; and with the options of the job.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from hybrid_ray.config import TrainConfig
from hybrid_ray.config.named import load_named, make_named, name_and_options, option_problems
from hybrid_ray.errors import ConfigError

__all__ = ["check_own_optimizer", "own_optimizer"]

_PLACE = "train.optimizer"
_READ = {"lr": "learning_rate", "betas": "betas", "weight_decay": "weight_decay"}


def check_own_optimizer(config: TrainConfig, folders: Sequence[str | Path] = ()) -> None:
    """Import what the job names and check that it can be called as it will be; nothing is made.

    Args:
        folders: where a user's module is looked for before the working directory.

    Raises:
        ConfigError: all that is wrong with it, its options, and settings of ``train`` that it would ignore.
    """
    name, options = name_and_options(config.optimizer)
    found = load_named(name, setting=_PLACE, folders=folders)
    if not callable(found):
        raise ConfigError(f"{_PLACE} is {name!r} but that is a {type(found).__name__}: name a class or a function")
    known = inspect.signature(found).parameters
    given = [*options, *(key for key in ("params", *_READ) if key in known and key not in options)]
    problems = [*option_problems(found, given, name=name, setting=_PLACE), *_ignored(config, name, options, known)]
    if problems:
        raise ConfigError(problems)


def own_optimizer(groups: Sequence[Mapping[str, Any]], config: TrainConfig) -> Optimizer:
    """The optimizer, for groups of parameters with a weight decay of their own. Its module has been imported.

    Raises:
        ConfigError: making it fails, or what it makes is no torch ``Optimizer``.
    """
    usual = {"params": list(groups), **{key: getattr(config, setting) for key, setting in _READ.items()}}
    made: Optimizer = make_named(config.optimizer, Optimizer, place=_PLACE, usual=usual, folders=())
    return made


def _ignored(config: TrainConfig, name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """Settings of ``train`` that the optimizer would not see, and options that would overrule them."""
    for key in _READ.keys() & options.keys():
        yield f"{_PLACE}.{key} is train.{_READ[key]} in a job: write it there"
    if "lr" not in known:
        yield f"{_PLACE} is {name!r} but it takes no lr: train.learning_rate would have no effect; add the parameter"
    if "weight_decay" not in known and config.weight_decay:
        yield (
            f"train.weight_decay is {config.weight_decay} but {name} takes no weight_decay: set train.weight_decay to 0"
        )
    if "betas" not in known and config.betas != TrainConfig().betas:
        yield f"train.betas is {list(config.betas)} but {name} takes no betas: leave train.betas out"
