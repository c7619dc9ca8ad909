"""Which predictor: one of ours by its name or a user's by ``package.module:Name``, and the options of each."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Field, PlainValidator

from hybrid_ray.config.named import did_you_mean, is_module_name
from hybrid_ray.config.section import NonNegative, Positive, section
from hybrid_ray.errors import ConfigError

__all__ = [
    "OPTIONS",
    "EmaNesterovOptions",
    "LinearFitOptions",
    "MomentumOptions",
    "NoOptions",
    "PredictorChoice",
    "PredictorConfig",
    "PredictorName",
    "SlowMomentumOptions",
    "SnooOptions",
]

PredictorName = Literal[
    "none", "slow_momentum", "ema_nesterov", "snoo", "linear_fit", "momentum", "zero", "random", "reversed"
]  # fmt: skip

_GAIN = "A predicted step moves by gain x the averaged step of a real one"


@section
class NoOptions:
    """Takes no options."""


@section
class EmaNesterovOptions:
    """Along a long average of what real steps did."""

    gain: NonNegative = Field(default=2.5, description=_GAIN)
    time_constant: Positive | None = Field(
        default=None, description="Of the average, in real steps; null: a sixteenth of the run's real steps"
    )


@section
class SnooOptions:
    """An outer Nesterov step on what each cycle's real steps did."""

    outer_lr: Positive = Field(default=0.6, description="Outer learning rate")
    outer_momentum: float = Field(default=0.5, ge=0.0, le=0.999, description="Outer momentum")


@section
class LinearFitOptions:
    """Along a least-squares line through the last cycles."""

    gain: NonNegative = Field(default=1.0, description=_GAIN)
    fit_windows: int = Field(default=4, ge=2, le=1000, description="Points in one fit")


@section
class MomentumOptions:
    """The optimizer's own momentum, carried on without gradients."""

    gain: NonNegative = Field(default=1.0, description="Length of a predicted step over that of the optimizer's")


@section
class SlowMomentumOptions:
    """AdEMAMix cut into jumps."""

    alpha: NonNegative = Field(default=8.0, description="Weight of the slow average at the end of the run")
    beta3: float = Field(default=0.996, ge=0.0, le=0.999999, description="Decay of the slow average at the end")
    caution: Literal["none", "sign", "shrink"] = Field(
        default="none",
        description="With Adam and its kin, an experiment. sign: move only where the fast average agrees in sign; "
        "shrink: only as far as the slow average is more than noise",
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
    "reversed": EmaNesterovOptions,  # whose opposite it is; its length is the recorded one
}
"""The options of each of ours."""


@section
class PredictorConfig:
    """A predictor and its options: of ours all of them, of a user's those that were given."""

    name: str = "ema_nesterov"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def changed_to(self, name: PredictorName) -> "PredictorConfig":
        """Another predictor of ours, with those of these options that it takes too."""
        known = {option.name for option in dataclasses.fields(OPTIONS[name])}
        return _checked({"name": name, **{key: value for key, value in self.options.items() if key in known}})


def _checked(value: Any) -> PredictorConfig:
    """The predictor that a name, or a mapping of name and options, says; the options of ours are checked and complete.

    Raises:
        ConfigError: all that is wrong with it.
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
            mend = did_you_mean(str(name), OPTIONS) or "or package.module:Name of your own"
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


PredictorChoice: TypeAlias = Annotated[
    PredictorConfig, PlainValidator(_checked, json_schema_input_type=PredictorName | str | dict[str, Any])
]
"""Written as a name or as ``{name: ema_nesterov, gain: 2.0}``."""
