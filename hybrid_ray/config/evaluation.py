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
    "Arm",
    "CompareConfig",
    "ConfirmConfig",
    "ControlArm",
    "FrontierConfig",
    "ObjectiveConfig",
    "Split",
    "arm_label",
]

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
    """What an arm is called in results and reports: a user's own by the name of its function."""
    return arm.rpartition(":")[2]


def _arm(arm: str) -> str:
    check_name(arm, get_args(ControlArm))
    if ":" in arm and arm_label(arm) in get_args(Arm):
        raise ValueError(f"another arm is called {arm_label(arm)} too: give the function another name")
    return arm


def _told_apart(arms: tuple[str, ...]) -> tuple[str, ...]:
    if len({arm_label(arm) for arm in arms}) < len(set(arms)):
        raise ValueError("two of them have functions of one name: give one of them another name")
    return arms


ControlArms = Annotated[Listed[Annotated[str, AfterValidator(_arm)]], AfterValidator(_told_apart)]


@section
class ObjectiveConfig:
    """What a trial is scored by (docs/method.md, section 4)."""

    mode: Literal["score", "net", "pareto"] = Field(
        default="score",
        description="score: speedup less a penalty; net: net speedup; pareto: speedup and loss, two objectives",
    )
    penalty_weight: NonNegative = Field(default=20.0, description="score: weight of the loss penalty")
    tolerance: NonNegative = Field(default=0.02, description="score: relative rise of the loss that costs nothing")
    max_degradation: Positive = Field(default=0.25, description="Relative rise of the loss at which a trial is stopped")


def _with_the_baseline(lengths: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(lengths)) < 5 or 1.0 not in lengths:
        raise ValueError("needs at least 5 lengths, 1.0 (the baseline) among them")
    return lengths


@section
class FrontierConfig:
    """Real-steps-only runs of several lengths, each with its schedule fully decayed."""

    lengths: Annotated[Listed[Annotated[float, Field(ge=0.05, le=4.0)]], AfterValidator(_with_the_baseline)] = Field(
        default=(0.4, 0.55, 0.7, 0.85, 1.0, 1.1), description="Lengths as shares of train.steps; 1.0 is the baseline"
    )


@section
class ConfirmConfig:
    """The best trials again, on fresh seeds and the test split, with controls that cost the same."""

    best: int = Field(default=2, ge=0, le=100_000, description="How many of the best trials; 0: no confirmation")
    seeds: int = Field(default=3, ge=3, le=10_000, description="Fresh seeds that each is run with")
    arms: ControlArms = Field(
        default=("equal_steps", "placebo"), description="Controls of each, or package.module:function"
    )


def _rising(analyses: tuple[int, ...]) -> tuple[int, ...]:
    if not analyses or any(a >= b for a, b in pairwise(analyses)):
        raise ValueError("must be rising numbers of seeds, the first at least 3")
    return analyses


@section
class CompareConfig:
    """``hybrid-ray compare``: the job's own hybrid settings against the controls, over seeds, with statistics."""

    interim_analyses: Annotated[Listed[Annotated[int, Field(ge=3, le=10_000)]], AfterValidator(_rising)] = Field(
        default=(6, 12),
        description="Numbers of seeds after which the result is analysed; it stops at the first analysis that decides. "
        "Three seeds find an effect of 3 % in 4 to 32 % of cases, six in 29 to 81 %",
    )
    spending: Literal["obrien_fleming", "pocock"] = Field(
        default="obrien_fleming", description="How the error level is spread over the interim analyses"
    )
    arms: ControlArms = Field(default=get_args(ControlArm), description="Controls, or package.module:function")
    peers: Listed[OptimizerName] = Field(
        default=(),
        description="Optimizers that skip nothing, each tuned like the baseline and with a frontier of its own. Only a "
        "gain over the best of them comes from predicting",
    )
    # A setting is tuned with the others at the best values found before.
    tune_baseline: bool = Field(
        default=True,
        description="Tune the baseline, then each peer, and the hybrid's learning rate (as hybrid.lr_factor)",
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
            "description": "Further configurations by name, each as settings over the job's own (train.precision: "
            "bf16). Each is compared with the baseline, and with its own settings without prediction: what precision "
            "or batch size bring is not the method's"
        },
    )
    effect: Positive = Field(default=0.03, description="The relative effect that the number of seeds is planned for")
