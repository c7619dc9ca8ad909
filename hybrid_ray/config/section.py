"""A section of a job as a frozen pydantic dataclass, and pydantic's errors as sentences.

Types are strict: an int is accepted as a float and a list as a tuple, nothing else is converted; inf and nan are
rejected. Each field declares its bounds and choices.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar, dataclass_transform, get_type_hints

import pydantic.dataclasses
from pydantic import ConfigDict, Field, Strict, ValidationError
from pydantic_core import ErrorDetails

from hybrid_ray.config.named import did_you_mean
from hybrid_ray.errors import ConfigError

__all__ = ["MOST", "Listed", "NonNegative", "Positive", "Seed", "Share", "Whole", "place_of", "section", "sentences"]

T = TypeVar("T")
Item = TypeVar("Item")

MOST = 10**9
"""Upper bound of whole numbers without a lower one, so that their sums and products stay exact everywhere."""
Whole: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**31 - 1)]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0.0, le=1e12)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0, le=1e12)]
Listed: TypeAlias = Annotated[tuple[Item, ...], Strict(False)]
"""A tuple, written as a list."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field, dataclasses.field))
def section(kind: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, checked dataclass.

    Making an instance with wrong values raises one `ConfigError` with every problem. ``dataclasses.replace``,
    ``asdict`` and ``fields`` work as usual.
    """
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(config=config, frozen=True, kw_only=True, slots=True)(kind)
    check = made.__init__

    @functools.wraps(check)
    def checked(self: Any, **values: Any) -> None:
        try:
            check(self, **values)
        except ValidationError as error:
            raise ConfigError(sentences(error, values, made)) from None

    made.__init__ = checked
    found: type[T] = made
    return found


def sentences(error: ValidationError, given: Mapping[str, Any], kind: type) -> list[str]:
    """The problems, one sentence per setting: its full path, the value, the rule, the correction.

    Args:
        given: the values that were checked.
        kind: the section they belong to, which defines the known settings.
    """
    found: dict[tuple[tuple[str, ...], int | None], list[ErrorDetails]] = {}  # by setting and item of a list
    for detail in error.errors(include_url=False):
        item = next((step for step in detail["loc"] if isinstance(step, int)), None)
        found.setdefault((place_of(detail["loc"], given), item), []).append(detail)
    return [text for (place, _), details in found.items() for text in _sentences(place, details, kind)]


def place_of(location: Sequence[int | str], given: Any) -> tuple[str, ...]:
    """The keys of ``given`` that lead to an error, without list positions and pydantic's names of alternatives."""
    place: list[str] = []
    for step in location:
        if not isinstance(given, Mapping) or (step not in given and place):
            break
        place.append(str(step))
        given = given.get(step)
    return tuple(place)


def _sentences(place: tuple[str, ...], details: Sequence[ErrorDetails], kind: type) -> list[str]:
    """The problems of one setting. A setting with its own checks (a predictor) may have several."""
    inner = details[0].get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return [f"{'.'.join(place)}.{problem}" for problem in inner.problems]
    return [_sentence(place, details, kind)]


def _sentence(place: tuple[str, ...], details: Sequence[ErrorDetails], kind: type) -> str:
    where, first = ".".join(place), details[0]
    if first["type"] in ("unexpected_keyword_argument", "invalid_key"):
        return _unknown(place, kind)
    if first["type"] == "value_error":
        return f"{where} is {shown(first['input'])} but {first['ctx']['error']}"
    rules = dict.fromkeys(_rule(detail) for detail in details)
    mend = did_you_mean(str(first["input"]), _choices(first)) if first["type"] == "literal_error" else None
    return f"{where} is {shown(first['input'])} but must be {' or '.join(rules)}{f': {mend}' if mend else ''}"


def _rule(detail: ErrorDetails) -> str:
    """The rule that a value broke."""
    limits, kind = detail.get("ctx", {}), detail["type"]
    match kind:
        case "greater_than_equal":
            return f"at least {limits['ge']}"
        case "less_than_equal":
            return f"at most {limits['le']}"
        case "greater_than":
            return f"above {limits['gt']}"
        case "less_than":
            return f"below {limits['lt']}"
        case "literal_error":
            return f"one of {', '.join(_choices(detail))}"
        case "missing":
            return "a list of more items"
        case "too_long":
            return f"a list of {limits['max_length']} items"
    return _KINDS.get(kind, detail["msg"].removeprefix("Input should be ").lower())


def _choices(detail: ErrorDetails) -> list[str]:
    """The choices of a literal, which pydantic writes as ``'tpe', 'asha' or 'none'``."""
    return re.findall("'([^']+)'", detail["ctx"]["expected"])


_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "dataclass_type": "a section of settings",
}


def shown(value: object) -> str:
    """A value as text for a message, at most a line long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def _unknown(place: tuple[str, ...], kind: type) -> str:
    """The problem of an unknown key, with that name in another section or a similar one in this section."""
    *above, word = place
    every = [*_settings(kind)]
    here = [path for path in every if path[:-1] == tuple(above)]
    elsewhere = [path for path in every if path[-1] == word]
    close = difflib.get_close_matches(word, [path[-1] for path in here], n=1)
    if elsewhere or close:
        mend = f"did you mean {'.'.join(elsewhere[0] if elsewhere else (*above, *close))!r}?"
    else:
        mend = f"this section has {', '.join(sorted(path[-1] for path in here))}"
    return f"{'.'.join(place)} is not a setting: {mend}"


def _settings(kind: type, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all settings of a section and of the sections inside it."""
    for name, hint in get_type_hints(kind).items():
        if not name.startswith("_"):
            yield (*above, name)
            if dataclasses.is_dataclass(hint):
                yield from _settings(hint, (*above, name))  # type: ignore[arg-type]
