"""The predictor: a built-in one by its name or a user's by ``package.module:Name``; and the options of each."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, Field, PlainValidator

from hybrid_ray.config.named import did_you_mean, is_module_name
from hybrid_ray.config.section import NonNegative, Positive, section
from hybrid_ray.errors import ConfigError

__all__ = [
    "DEFAULT_PREDICTOR",
    "OPTIONS",
    "EmaNesterovOptions",
    "LinearFitOptions",
    "MomentumOptions",
    "NoOptions",
    "PredictorChoice",
    "PredictorConfig",
    "PredictorName",
    "ReversedOptions",
    "SlowMomentumOptions",
    "SnooOptions",
]

PredictorName = Literal[
    "none", "slow_momentum", "ema_nesterov", "snoo", "linear_fit", "momentum", "zero", "random", "reversed"
]  # fmt: skip

_GAIN = "Length of a predicted step, as a multiple of the average real step"


@section
class NoOptions:
    """Takes no options."""


@section
class EmaNesterovOptions:
    """Moves along a long average of the displacements of real steps."""

    gain: NonNegative = Field(default=2.5, description=_GAIN)
    time_constant: Positive | None = Field(
        default=None,
        description="Time constant of the average, in real steps; null: a sixteenth of the run's real steps",
    )


@section
class SnooOptions:
    """Takes an outer Nesterov step along the displacement of each cycle's real steps."""

    outer_lr: Positive = Field(default=0.6, description="Outer learning rate")
    outer_momentum: float = Field(default=0.5, ge=0.0, le=0.999, description="Outer momentum")


@section
class LinearFitOptions:
    """Extrapolates a least-squares line through the weights of the last cycles."""

    gain: NonNegative = Field(default=1.0, description=_GAIN)
    fit_windows: int = Field(default=4, ge=2, le=1000, description="Number of points in one fit")


@section
class MomentumOptions:
    """Moves along the optimizer's momentum, without new gradients."""

    gain: NonNegative = Field(
        default=1.0, description="Length of a predicted step, as a multiple of the optimizer's step"
    )


@section
class SlowMomentumOptions:
    """Moves along the slow average of AdEMAMix, a whole cycle at once."""

    alpha: NonNegative = Field(default=8.0, description="Weight of the slow average at the end of the run")
    beta3: float = Field(
        default=0.996, ge=0.0, le=0.999999, description="Decay rate of the slow average at the end of the run"
    )
    matrices: Literal["second_moment", "orthogonal"] = Field(
        default="second_moment",
        description="Step of hidden matrices, for Adam and similar optimizers: the slow average over the root of the "
        "second moment, or made orthogonal as in Muon, once per jump",
    )
    caution: Literal["none", "sign", "shrink"] = Field(
        default="none",
        description="Experimental, for Adam and similar optimizers. sign: move only weights whose fast average has the "
        "same sign; shrink: shorten the move where the slow average is mostly noise. Not for orthogonal matrices",
    )


def _completed(of: Mapping[str, Any]) -> Mapping[str, Any]:
    """Another predictor as ``{name: ..., option: ...}`` with all of its options."""
    chosen = _checked(of)
    if chosen.name in ("none", "zero", "random", "reversed"):
        raise ValueError(f"names {chosen.name}, which has no direction to reverse: name another predictor")
    return {"name": chosen.name, **chosen.options}


@section
class ReversedOptions:
    """Moves opposite to another predictor, by the recorded length."""

    of: Annotated[Mapping[str, Any], AfterValidator(_completed)] = field(
        default_factory=lambda: {"name": "ema_nesterov"},
        metadata={"description": "The other predictor, with its options"},
    )


OPTIONS: Mapping[str, type] = {
    "none": NoOptions,
    "slow_momentum": SlowMomentumOptions,
    "ema_nesterov": EmaNesterovOptions,
    "snoo": SnooOptions,
    "linear_fit": LinearFitOptions,
    "momentum": MomentumOptions,
    "zero": NoOptions,
    "random": NoOptions,
    "reversed": ReversedOptions,
}
"""The options of each built-in predictor."""


@section
class PredictorConfig:
    """A predictor and its options: all options of a built-in one, only the given options of a user's own."""

    name: str = "ema_nesterov"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def moving(self) -> "PredictorConfig":
        """The predictor that computes the direction: this one, or the one that ``reversed`` reverses."""
        return _checked(self.options["of"]) if self.name == "reversed" else self


def _checked(value: Any) -> PredictorConfig:
    """The predictor for a name, or for a mapping of name and options; built-in options are checked and completed.

    Raises:
        ConfigError: lists every problem.
    """
    if isinstance(value, PredictorConfig):
        value = {"name": value.name, **value.options}
    elif isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ValueError("must be a name, or a mapping with a name and options")
    options = dict(value)
    name = options.pop("name", "ema_nesterov")
    if name not in OPTIONS:
        if not isinstance(name, str) or not is_module_name(name):
            mend = did_you_mean(str(name), OPTIONS) or "or package.module:Name for your own predictor"
            raise ConfigError(f"name is {name!r} but must be one of {', '.join(get_args(PredictorName))}: {mend}")
        try:
            json.dumps(options, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("must have options of plain values: text, numbers, lists, mappings") from None
        return PredictorConfig(name=name, options=options)
    known = [option.name for option in dataclasses.fields(OPTIONS[name])]
    takes = f"it takes {', '.join(known) or 'none'}"
    problems = [
        f"{key} is not an option of {name}: {did_you_mean(key, known) or takes}" for key in options if key not in known
    ]
    try:
        complete = OPTIONS[name](**{key: value for key, value in options.items() if key in known})
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return PredictorConfig(name=name, options=dataclasses.asdict(complete))


DEFAULT_PREDICTOR = _checked("ema_nesterov")

PredictorChoice: TypeAlias = Annotated[
    PredictorConfig, PlainValidator(_checked, json_schema_input_type=PredictorName | str | dict[str, Any])
]
"""Written as a name or as ``{name: ema_nesterov, gain: 2.0}``."""
