"""How runs are judged: the objective, the frontier, the confirmation, and the comparison with its controls."""

from collections.abc import Mapping
from dataclasses import field
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from hybrid_ray.config.named import check_name
from hybrid_ray.config.section import Listed, NonNegative, Positive, section
from hybrid_ray.config.training import Betas, OptimizerName

__all__ = [
    "MOST_SEEDS",
    "Arm",
    "CompareConfig",
    "ConfirmConfig",
    "ControlArm",
    "FrontierConfig",
    "ObjectiveConfig",
    "Split",
    "arm_label",
]

MOST_SEEDS = 1000
"""Of one confirmation or comparison: `evaluation.confirm.fresh_seeds` takes them from blocks of so many."""
Split = Literal["decide", "val", "test"]
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
    "peer",
]
ControlArm = Literal["equal_steps", "equal_time", "placebo", "random_direction", "reversed", "lr_matched"]


def arm_label(arm: str) -> str:
    """The arm's name in results and reports. A user's own arm is called by the name of its function."""
    return arm.rpartition(":")[2]


def _arm(arm: str) -> str:
    check_name(arm, get_args(ControlArm))
    if ":" in arm and arm_label(arm) in get_args(Arm):
        raise ValueError(f"there already is an arm called {arm_label(arm)}: rename the function")
    return arm


def _distinct(arms: tuple[str, ...]) -> tuple[str, ...]:
    if len({arm_label(arm) for arm in arms}) < len(set(arms)):
        raise ValueError("two of these functions have the same name: rename one of them")
    return arms


ControlArms = Annotated[Listed[Annotated[str, AfterValidator(_arm)]], AfterValidator(_distinct)]


@section
class ObjectiveConfig:
    """How a trial is scored (docs/method.md, section 4)."""

    mode: Literal["score", "net", "pareto"] = Field(
        default="score",
        description="score: speedup minus a penalty for a higher loss; net: net speedup, measured against stopping "
        "early; pareto: speedup and loss as two objectives",
    )
    penalty_weight: NonNegative = Field(default=20.0, description="Weight of the loss penalty in the score")
    tolerance: NonNegative = Field(
        default=0.02, description="Relative rise of the loss that the score does not penalize"
    )
    max_degradation: Positive = Field(
        default=0.25, description="A trial whose loss rises by more than this (relative to the baseline) is stopped"
    )


def _with_the_baseline(lengths: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(lengths)) < 5 or 1.0 not in lengths:
        raise ValueError("needs at least 5 lengths, including 1.0 (the baseline)")
    return lengths


@section
class FrontierConfig:
    """Plain training runs of several lengths, each with a learning rate that decays fully by its end."""

    lengths: Annotated[Listed[Annotated[float, Field(ge=0.05, le=4.0)]], AfterValidator(_with_the_baseline)] = Field(
        default=(0.4, 0.55, 0.7, 0.85, 1.0, 1.1), description="Lengths as fractions of train.steps; 1.0 is the baseline"
    )


@section
class ConfirmConfig:
    """The best trials are repeated with new seeds and measured on the test split, next to controls of equal cost."""

    best: int = Field(default=2, ge=0, le=100_000, description="Number of best trials to confirm; 0: no confirmation")
    seeds: int = Field(default=3, ge=3, le=MOST_SEEDS, description="Number of new seeds for each of them")
    arms: ControlArms = Field(
        default=("equal_steps", "placebo"),
        description="Controls run for each of them: names, or package.module:function",
    )


def _rising(analyses: tuple[int, ...]) -> tuple[int, ...]:
    if not analyses or any(a >= b for a, b in pairwise(analyses)):
        raise ValueError("must be increasing numbers of seeds, the first at least 3")
    return analyses


@section
class CompareConfig:
    """``hybrid-ray compare``: the job's hybrid settings against the controls, over several seeds, with statistics."""

    interim_analyses: Annotated[Listed[Annotated[int, Field(ge=3, le=MOST_SEEDS)]], AfterValidator(_rising)] = Field(
        default=(6, 12),
        description="Numbers of seeds after which the result is analysed. The comparison stops at the first analysis "
        "that decides. Three seeds detect an effect of 3 % in 4 to 32 % of cases, six seeds in 29 to 81 %",
    )
    spending: Literal["obrien_fleming", "pocock"] = Field(
        default="obrien_fleming",
        description="Alpha-spending function: how the error level is divided among the interim analyses",
    )
    arms: ControlArms = Field(default=get_args(ControlArm), description="Controls: names, or package.module:function")
    peers: Listed[OptimizerName] = Field(
        default=(),
        description="Other optimizers, which train without predictions. Each is tuned like the baseline and has its "
        "own frontier. Only a gain over the best of them shows that predicting helps",
    )
    # One setting is tuned at a time, with the settings tuned before it at their best values.
    tune_baseline: bool = Field(
        default=True,
        description="Tune the baseline and each peer, then the hybrid's learning rate (hybrid.lr_factor)",
    )
    lr_factors: Listed[Positive] = Field(
        default=(0.5, 1.0, 2.0), description="Learning rates to try, as factors of train.learning_rate"
    )
    lr_warmup_fractions: Listed[Annotated[float, Field(ge=0.0, le=0.5)]] = Field(
        default=(), description="Values of train.lr_warmup_fraction to try besides the job's own"
    )
    weight_decays: Listed[NonNegative] = Field(
        default=(), description="Values of train.weight_decay to try besides the job's own"
    )
    betas: Listed[Betas] = Field(default=(), description="Values of train.betas to try besides the job's own")
    variants: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={
            "description": "More configurations by name. Each lists the settings it changes (train.precision: bf16). "
            "Each is compared with the baseline and with its own settings without predictions, so that an effect of "
            "precision or batch size is not credited to the method"
        },
    )
    effect: Positive = Field(
        default=0.03, description="Relative effect that the comparison should detect; used to plan the number of seeds"
    )
