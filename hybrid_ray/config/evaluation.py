"""How runs are judged: the objective, the frontier, the confirmation, and the comparison with its controls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from hybrid_ray.config.checks import above, at_least, choice, within
from hybrid_ray.config.training import OptimizerName

__all__ = [
    "Arm",
    "CompareConfig",
    "ConfirmConfig",
    "ControlArm",
    "FrontierConfig",
    "ObjectiveConfig",
    "Split",
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What a trial is scored by (docs/method.md, section 4)."""

    mode: Literal["score", "net", "pareto"] = "score"
    penalty_weight: float = 20.0
    tolerance: float = 0.02
    max_degradation: float = 0.25

    def problems(self) -> Iterator[str]:
        yield from choice("mode", self.mode, Literal["score", "net", "pareto"])
        yield from at_least("penalty_weight", self.penalty_weight, 0.0)
        yield from at_least("tolerance", self.tolerance, 0.0)
        yield from above("max_degradation", self.max_degradation, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierConfig:
    """Real-steps-only runs of several lengths, each with its schedule fully decayed. 1.0 is the baseline itself."""

    lengths: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85, 1.0, 1.1)

    def problems(self) -> Iterator[str]:
        for length in self.lengths:
            yield from within("lengths", length, 0.05, 4.0)
        if len(set(self.lengths)) < 5 or 1.0 not in self.lengths:
            yield f"lengths is {list(self.lengths)} but needs at least 5 lengths, 1.0 (the baseline) among them"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmConfig:
    """The best trials again, on fresh seeds and the test split, beside controls that cost the same."""

    best: int = 2  # 0: no confirmation
    seeds: int = 3
    arms: tuple[ControlArm, ...] = ("equal_steps", "placebo")

    def problems(self) -> Iterator[str]:
        yield from at_least("best", self.best, 0)
        yield from at_least("seeds", self.seeds, 3)
        for arm in self.arms:
            yield from choice("arms", arm, ControlArm)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """``hybrid-ray compare``: the job's own hybrid settings against the controls, over seeds, with statistics."""

    # Numbers of seeds after which the result is analysed; it stops at the first analysis that decides. Three seeds find
    # an effect of 3 % in 4 to 32 % of cases, six in 29 to 81 %.
    interim_analyses: tuple[int, ...] = (6, 12)
    spending: Literal["obrien_fleming", "pocock"] = "obrien_fleming"
    arms: tuple[ControlArm, ...] = get_args(ControlArm)
    # Optimizers that skip nothing, each tuned like the baseline and with a frontier of its own. Only a gain over the
    # best of them comes from predicting; one over the job's own optimizer alone may come from the optimizer.
    peers: tuple[OptimizerName, ...] = ()
    # First the baseline is tuned, then each peer, and the hybrid's learning rate. A setting is tuned with the others at
    # the best found before: the rate at lr_factors x train.learning_rate (the hybrid: x hybrid.lr_factor), then, where
    # more is listed here, warmup, weight decay and betas, beside the job's own.
    tune_baseline: bool = True
    lr_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    lr_warmup_fractions: tuple[float, ...] = ()
    weight_decays: tuple[float, ...] = ()
    betas: tuple[tuple[float, float], ...] = ()
    # Further configurations by name, each as settings over the job's own (train.precision: bf16). Each is compared with
    # the baseline, and with its own settings without prediction: what precision or batch bring is not the method's.
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    effect: float = 0.03  # the relative effect that the number of seeds is planned for

    def problems(self) -> Iterator[str]:
        if (
            not self.interim_analyses
            or self.interim_analyses[0] < 3
            or any(a >= b for a, b in pairwise(self.interim_analyses))
        ):
            found = list(self.interim_analyses)
            yield f"interim_analyses is {found} but must be rising numbers of seeds, the first at least 3"
        yield from choice("spending", self.spending, Literal["obrien_fleming", "pocock"])
        for arm in self.arms:
            yield from choice("arms", arm, ControlArm)
        for factor in self.lr_factors:
            yield from above("lr_factors", factor, 0.0)
        if self.tune_baseline and len(set(self.lr_factors)) < 2:
            yield f"lr_factors is {list(self.lr_factors)} but tuning needs at least 2 different factors"
        for peer in self.peers:
            yield from choice("peers", peer, OptimizerName)
        for fraction in self.lr_warmup_fractions:
            yield from within("lr_warmup_fractions", fraction, 0.0, 0.5)
        for decay in self.weight_decays:
            yield from at_least("weight_decays", decay, 0.0)
        for pair in self.betas:
            for beta in pair:
                yield from within("betas", beta, 0.0, 0.99999)
        yield from above("effect", self.effect, 0.0)
