"""What can't work, said before the first step."""

import math
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


def check_arguments(
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
    counts = {"total_steps": total_steps, "accumulate": accumulate}
    problems = [
        *(
            f"{name} is {value} but must be at least 1"
            for name, value in counts.items()
            if value is not None and value < 1
        ),
        *_replay_problems(optimizer, config, replay),
    ]
    if clip_norm is not None and not 0.0 < clip_norm < math.inf:
        problems.append(f"clip_norm is {clip_norm} but must be above 0, and finite")
    if total_steps is None and replay is None and config.predictor not in ("none", "random", "reversed"):
        problems.extend(_fraction_problems(config))
    if problems:
        raise ConfigError(problems)


def check_same_settings(mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError, with the names of all that differ, if a state was made by other settings."""
    other = sorted(name for name in {*mine, *saved} if mine.get(name) != saved.get(name))
    if other:
        raise CheckpointError(f"the checkpoint was made with other settings: {', '.join(other)}")


def _fraction_problems(config: HybridConfig) -> Iterator[str]:
    """Shares of a run whose length is not known."""
    shares = {"first_fraction": config.predicts_from, "off_fraction": 1.0 - config.predicts_until}
    for name, share in shares.items():
        if share > 0.0:
            whose = "" if getattr(config, name) is not None else f" (the default of {config.predictor})"
            part = "first" if name == "first_fraction" else "last"
            yield (
                f"{name} is {share:g}{whose}, the {part} share of the run without predictions, but total_steps is not "
                f"given: give HybridTrainer total_steps, or set {name}=0.0"
            )


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
