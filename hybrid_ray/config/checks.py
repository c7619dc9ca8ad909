"""The checks that the sections of a job share: each yields a sentence that names the value and the rule, or nothing."""

import math
from collections.abc import Iterator
from typing import Any, get_args

__all__ = ["above", "at_least", "choice", "within"]


def choice(name: str, value: object, kind: Any) -> Iterator[str]:
    if value not in get_args(kind):
        yield f"{name} is {value!r} but must be one of {', '.join(map(str, get_args(kind)))}"


def at_least(name: str, value: float | None, low: float) -> Iterator[str]:
    if value is not None and not low <= value < math.inf:
        yield f"{name} is {value} but must be at least {low}"


def within(name: str, value: float, low: float, high: float) -> Iterator[str]:
    if not low <= value <= high:
        yield f"{name} is {value} but must lie in [{low}, {high}]"


def above(name: str, value: float, low: float) -> Iterator[str]:
    if not low < value < math.inf:
        yield f"{name} is {value} but must be above {low}, and finite"
