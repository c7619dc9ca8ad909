"""Checks of the trainer's arguments and checkpoints, made before the first step."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError, ConfigError, UnsupportedOptimizer
from hybrid_ray.optim.local import local_part
from hybrid_ray.optim.schedule_free import rewrites_weights
from hybrid_ray.run_result import Replay

__all__ = ["check_arguments", "check_same_origin", "check_same_settings", "origin"]

_SHOWN = 5  # differences between a checkpoint and the trainer that an error lists at most


def check_arguments(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: HybridConfig,
    replay: Replay | None,
    *,
    total_steps: int | None,
    accumulate: int,
    clip_norm: float | None,
) -> None:
    """Raise for arguments of the trainer that can't work together.

    Raises:
        ConfigError: with all problems of the settings, the other arguments and the replay.
        UnsupportedOptimizer: if the object is not an optimizer, if its step needs a closure (LBFGS), or if it would
            undo predictions (schedule-free).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UnsupportedOptimizer(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
    closure = signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        name = type(optimizer).__name__
        raise UnsupportedOptimizer(f"{name} needs a closure of its own: use a first-order optimizer such as AdamW")
    if rewrites_weights(optimizer) and config.predictor.name != "none":
        name = type(optimizer).__name__
        raise UnsupportedOptimizer(
            f"{name} computes the weights from a state of its own, which would undo predictions: use another "
            "optimizer, or predictor off"
        )
    counts = {"total_steps": total_steps, "accumulate": accumulate}
    problems = [
        *(
            f"{name} is {value} but must be at least 1"
            for name, value in counts.items()
            if value is not None and value < 1
        ),
        *_parameter_problems(model, optimizer),
        *_rate_problems(optimizer, config),
        *_replay_problems(optimizer, config, replay),
    ]
    if clip_norm is not None and not 0.0 < clip_norm < math.inf:
        problems.append(f"clip_norm is {clip_norm} but must be above 0, and finite")
    problems.extend(config.problems())
    if total_steps is None and replay is None and config.predictor.name not in ("none", "random", "reversed"):
        problems.extend(_fraction_problems(config))
    if problems:
        raise ConfigError(problems)


def check_same_settings(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with the names of all settings that differ, if other settings made the state."""
    other = sorted(name for name in {*mine, *saved} if mine.get(name) != saved.get(name))
    if other:
        raise CheckpointError(f"the checkpoint was made with other settings: {', '.join(other)}")


def origin(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: object, scaler: object
) -> dict[str, Any]:
    """Describe what a state belongs to: its parameters and the types of optimizer, schedule and scaler."""
    names = _names(model)
    return {
        "parameters": [
            [
                [names.get(id(parameter), f"number {place}"), list(local_part(parameter).shape), str(parameter.dtype)]
                for place, parameter in enumerate(group["params"])
            ]
            for group in optimizer.param_groups
        ],
        "optimizer": type(optimizer).__name__,
        "lr_scheduler": None if schedule is None else type(schedule).__name__,
        "scaler": None if scaler is None else type(scaler).__name__,
    }


def check_same_origin(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError with the differences if a state is from another model, optimizer, schedule or scaler."""
    found = [
        f"{kind} is {saved.get(kind) or 'none'} in the checkpoint but {mine[kind] or 'none'} here"
        for kind in ("optimizer", "lr_scheduler", "scaler")
        if saved.get(kind) != mine[kind]
    ]
    if saved["parameters"] != mine["parameters"]:
        found.extend(_differences(mine["parameters"], saved["parameters"]))
    if found:
        shown = found[:_SHOWN] + ([f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else [])
        raise CheckpointError(f"the checkpoint belongs to another training, nothing was loaded: {'; '.join(shown)}")


def _differences(mine: Sequence[Any], saved: Sequence[Any]) -> Iterator[str]:
    """Describe how two lists of parameters, grouped as `origin` groups them, differ."""
    here, there = (
        {name: (tuple(shape), dtype, number) for number, group in enumerate(groups) for name, shape, dtype in group}
        for groups in (mine, saved)
    )
    yield from (f"parameter {name} is only in the checkpoint" for name in there if name not in here)
    yield from (f"parameter {name} is not in the checkpoint" for name in here if name not in there)
    for name in here:
        if name in there and here[name] != there[name]:
            texts = [f"{shape} {dtype} in group {number}" for shape, dtype, number in (there[name], here[name])]
            yield f"parameter {name} is {texts[0]} in the checkpoint but {texts[1]} here"
    if here == there:
        yield "the optimizer's parameters are the same but in another order"


def _names(model: torch.nn.Module) -> dict[int, str]:
    """Map the id of each parameter to its name in the bare model, without the prefixes that wrappers add."""
    return {
        id(parameter): name.replace("_orig_mod.", "").removeprefix("module.")
        for name, parameter in model.named_parameters()
    }


def _parameter_problems(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """Find parameters whose weights or gradients can't be measured."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, module in model.named_modules():
        sparse = isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag) and module.sparse
        if sparse and id(module.weight) in trained:
            yield f"{name or 'the model'} has sparse=True, whose gradients can't be measured: use sparse=False"
    meta = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if meta:
        yield (
            f"{len(meta)} parameters, {meta[0]} among them, are on the meta device, without numbers: give the model "
            "weights first (to_empty, then load or initialise)"
        )


def _rate_problems(optimizer: torch.optim.Optimizer, config: HybridConfig) -> Iterator[str]:
    if config.couple_lr and config.predictor.name != "none":
        for number, group in enumerate(optimizer.param_groups):
            if group.get("lr") is None:
                yield (
                    f"lr of parameter group {number} is None, so predicted steps can't follow it: give the optimizer a "
                    "rate, or set couple_lr=False"
                )


def _fraction_problems(config: HybridConfig) -> Iterator[str]:
    """Find settings that are shares of the run although its length is not known."""
    shares = {"first_fraction": config.predicts_from, "off_fraction": 1.0 - config.predicts_until}
    for name, share in shares.items():
        if share > 0.0:
            whose = "" if getattr(config, name) is not None else f" (the default of {config.predictor.name})"
            part = "first" if name == "first_fraction" else "last"
            yield (
                f"{name} is {share:g}{whose}, the {part} share of the run without predictions, but total_steps is not "
                f"given: give HybridTrainer total_steps, or set {name}=0.0"
            )


def _replay_problems(optimizer: torch.optim.Optimizer, config: HybridConfig, replay: Replay | None) -> Iterator[str]:
    if replay is None:
        if config.predictor.name in ("random", "reversed"):
            yield f"predictor is {config.predictor.name!r}, a control: give it the replay of a hybrid run"
        return
    jumps = len(re.findall("[PM]+", replay.phases))
    if jumps != len(replay.norms):
        yield f"the replay has {jumps} predictions but norms for {len(replay.norms)}: give a whole record of one run"
    groups = len(optimizer.param_groups)
    if any(len(norms) != groups for norms in replay.norms):
        found = sorted({len(norms) for norms in replay.norms})
        yield f"the replay has norms of {found} parameter groups but the optimizer has {groups}: use the same groups"
