"""Predictors move the weights on steps without a gradient. One file per predictor; base.py defines the interface."""

import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from hybrid_ray.config import HybridConfig, PredictorConfig
from hybrid_ray.config.named import load_named, option_problems, subclass_problems
from hybrid_ray.config.section import sentences
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors.base import Predictor
from hybrid_ray.method.predictors.ema_nesterov import EmaNesterov
from hybrid_ray.method.predictors.linear_fit import LinearFit
from hybrid_ray.method.predictors.momentum import Momentum
from hybrid_ray.method.predictors.random_direction import RandomDirection
from hybrid_ray.method.predictors.slow_momentum import SlowMomentum
from hybrid_ray.method.predictors.snoo import Snoo
from hybrid_ray.method.predictors.zero import Zero
from hybrid_ray.method.weights import Weights

__all__ = [
    "EmaNesterov",
    "LinearFit",
    "Momentum",
    "Predictor",
    "RandomDirection",
    "SlowMomentum",
    "Snoo",
    "Zero",
    "build_predictor",
    "load_predictor",
]

_KINDS: dict[str, type[Predictor]] = {
    "ema_nesterov": EmaNesterov,
    "snoo": Snoo,
    "linear_fit": LinearFit,
    "momentum": Momentum,
    "slow_momentum": SlowMomentum,
    "zero": Zero,
    "random": RandomDirection,
}


def build_predictor(
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    config: HybridConfig,
    *,
    total_steps: int | None = None,
    seed: int = 0,
) -> Predictor | None:
    """The predictor that ``config.predictor`` names; None for ``none``. ``reversed`` is another predictor, reversed.

    Raises:
        ConfigError: the predictor can't work with this optimizer, or the user's class is invalid.
    """
    chosen = config.predictor.moving
    name = chosen.name
    if name == "none":
        return None
    kind, options = load_predictor(chosen)
    if kind.needs_total_steps and total_steps is None:
        raise ConfigError(
            f"predictor {name} needs total_steps, since what it keeps grows over the run: give it to HybridTrainer"
        )
    made = kind(weights, optimizer, config, options, total_steps=total_steps, seed=seed)
    made.reverse = config.predictor.name == "reversed"
    return made


def load_predictor(config: PredictorConfig, folders: Sequence[str | Path] = ()) -> tuple[type[Predictor], Any]:
    """The class of a predictor, and its options.

    Args:
        folders: searched for a user's module before the working directory.

    Raises:
        ConfigError: lists all problems of a user's class or of its options.
    """
    setting, name = "hybrid.predictor", config.name
    if name in _KINDS:
        return _KINDS[name], _KINDS[name].Options(**config.options)
    kind = load_named(name, setting=setting, folders=folders)
    problems = [*subclass_problems(kind, Predictor, name=name, setting=setting, public="hybrid_ray.Predictor")]
    if not problems and kind.write_direction is Predictor.write_direction:
        problems.append(f"{setting} is {name!r} but the class has no write_direction: a predictor must define it")
    if not problems and not is_dataclass(kind.Options):
        problems.append(f"{setting} is {name!r} but its Options is no dataclass: decorate it with @dataclass")
    if not problems:
        problems = [*option_problems(kind.Options, config.options, name=name, setting=setting)]
    if problems:
        raise ConfigError(problems)
    try:
        options = TypeAdapter(kind.Options).validate_json(json.dumps(dict(config.options)), strict=True)
    except ValidationError as error:
        raise ConfigError([f"{setting}.{text}" for text in sentences(error, config.options, kind.Options)]) from error
    return kind, options
