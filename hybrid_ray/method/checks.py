"""What can't work, said before the first step."""

import re
from collections.abc import Iterator, Mapping
from inspect import Parameter, signature
from typing import Any

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError, ConfigError, UnsupportedOptimizer
from hybrid_ray.optim.schedule_free import rewrites_weights
from hybrid_ray.run_result import Replay

__all__ = ["check_arguments", "check_same_settings"]


def check_arguments(optimizer: torch.optim.Optimizer, config: HybridConfig, replay: Replay | None) -> None:
    """Raise for arguments of the trainer that can't work together.

    Raises:
        ConfigError: with all problems of the settings and the replay.
        UnsupportedOptimizer: for what is no optimizer, one whose step needs a closure (LBFGS), or one that would undo
            predictions (schedule-free).
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UnsupportedOptimizer(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
    closure = signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        name = type(optimizer).__name__
        raise UnsupportedOptimizer(f"{name} needs a closure of its own: use a first-order optimizer such as AdamW")
    if rewrites_weights(optimizer) and config.predictor != "none":
        name = type(optimizer).__name__
        raise UnsupportedOptimizer(
            f"{name} computes the weights from a state of its own, which would undo predictions: use another "
            "optimizer, or predictor off"
        )
    problems = [*config.problems(), *_replay_problems(optimizer, config, replay)]
    if problems:
        raise ConfigError(problems)


def check_same_settings(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with the names of all that differ, if a state was made by other settings."""
    other = sorted(name for name in {*mine, *saved} if mine.get(name) != saved.get(name))
    if other:
        raise CheckpointError(f"the checkpoint was made with other settings: {', '.join(other)}")


def _replay_problems(optimizer: torch.optim.Optimizer, config: HybridConfig, replay: Replay | None) -> Iterator[str]:
    if replay is None:
        if config.predictor in ("random", "reversed"):
            yield f"predictor is {config.predictor!r}, a control: give it the replay of a hybrid run"
        return
    jumps = len(re.findall("[PM]+", replay.phases))
    if jumps != len(replay.norms):
        yield f"the replay has {jumps} predictions but norms for {len(replay.norms)}: give a whole record of one run"
    groups = len(optimizer.param_groups)
    if any(len(norms) != groups for norms in replay.norms):
        found = sorted({len(norms) for norms in replay.norms})
        yield f"the replay has norms of {found} parameter groups but the optimizer has {groups}: use the same groups"
