"""A ladder: the same search on ever larger models, the best settings carried from each size to the next."""

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from hybrid_ray.config.section import Listed, Positive, Share, Whole, section

__all__ = ["LadderConfig", "ShareOfRun"]

ShareOfRun = Literal[
    "prediction_horizon", "correction_interval", "memory", "warmup_steps", "full_steps", "correct_steps"
]
"""What can keep its share of the run on a rung with other steps. ``memory``: of the predictor's average."""


def _different(factors: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(factors)) < 2:
        raise ValueError("needs at least 2 different factors")
    return factors


@section
class LadderConfig:
    """``hybrid-ray ladder``: one study per rung, from the smallest model to the largest."""

    rungs: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata={
            "description": "The rungs by name, smallest first. Each lists the settings that it changes (model.preset: "
            "350M, or task.options.width: 64)"
        },
    )
    trials_factor: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="Trials of a rung / trials of the rung below, unless the rung sets search.trials; at least 2",
    )
    best: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Number of the best settings of a rung that the next one tries first. They also set its ranges",
    )
    others: Whole = Field(
        default=2,
        description="Number of further settings inside these ranges that are tried again, from all over the ranking. "
        "They make the rank correlation between two rungs cover more than the best settings",
    )
    margin: Share = Field(
        default=0.15,
        description="The ranges on the next rung: those of the best settings, widened on each side by this fraction of "
        "the space's own range; 1: the whole space",
    )
    shares_of_run: Listed[ShareOfRun] = Field(
        default=("prediction_horizon", "correction_interval", "memory"),
        description="Step counts that keep their share of the run on a rung with other train.steps. memory: beta3 and "
        "time_constant, the memory of the predictor's average. The others keep their number of steps",
    )
    learning_rate: Literal["retune", "width_rule", "fixed"] = Field(
        default="retune",
        description="retune: tune plain training on each rung, starting from the rate of the rung below; width_rule: "
        "change it by the ratio of widths to the power of width_exponent; fixed: the job's, or the rung's own",
    )
    lr_factors: Annotated[Listed[Positive], AfterValidator(_different)] = Field(
        default=(0.5, 1.0, 2.0), description="For retune. Rates to try, as factors of the rate of the rung below"
    )
    width_exponent: float = Field(
        default=-1.0,
        ge=-4.0,
        le=4.0,
        description="For width_rule. -1: inversely proportional to the width, which is muP's rule for Adam and hidden "
        "matrices",
    )
    width_setting: str | None = Field(
        default=None,
        description="For width_rule. The setting that is the width (task.options.width); null: the width of GPT-2",
    )
    from_nothing: Listed[str] = Field(
        default=(),
        description="Rungs that are also searched from nothing (the whole space, as many trials as the first rung), to "
        "measure what carrying settings up saves and costs",
    )
