"""Tables of a report and the texts of their cells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = [
    "NONE", "Table", "ends", "loss_unit", "mean_of", "number", "percent", "ratio", "setting", "with_error", "words",
]  # fmt: skip

NONE = "–"
"""The text of an empty cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table of the report. ``note`` is printed below it and explains its columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    marked: frozenset[str] = frozenset()  # first cells of the highlighted rows

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether all its cells are numbers or dashes. The templates right-align those columns."""
        cells = [[row[place] for row in self.rows if row[place] != NONE] for place in range(len(self.columns))]
        return tuple(bool(column) and all(re.match(r"[-+−<>]?\d", cell) for cell in column) for column in cells)


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """``value`` as cell text, followed by ``unit``; a dash if it is missing."""
    return NONE if value is None or pd.isna(value) else f"{value:,.{digits}f}{unit}"


def with_error(value: Any, error: Any, digits: int = 3) -> str:
    """A value with its standard error, ``0.931 ± 0.012``; a dash if the value is missing."""
    known = pd.notna(value) and pd.notna(error)
    return number(value, digits) + (f" ± {error:.{digits}f}" if known else "")


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as cell text in percent; a dash if it is missing."""
    return NONE if value is None or pd.isna(value) else f"{round(100 * value, digits) + 0.0:.{digits}f}\u00a0%"


def loss_unit(words: Mapping[str, str]) -> str:
    """The unit of a loss, ``nats per token``; ``words`` of `config.task.task_words`."""
    return f"{words['measure']} per {words['unit']}"


def setting(value: Any) -> str:
    """The value of a setting as cell text; a dash if it is missing."""
    if value is None or (not isinstance(value, str | Sequence) and pd.isna(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def ratio(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A mean with its interval, ``0.930 (0.900–0.960)``; an unknown end is a question mark, a missing mean a dash."""
    if found is None or found["mean"] is None:
        return NONE
    return f"{found['mean']:.{digits}f} ({ends(found, digits)})"


def ends(found: Mapping[str, Any], digits: int = 3) -> str:
    """The two ends of an interval, ``0.900–0.960``; an unknown end is a question mark."""
    if found["mean"] is None:
        return f"no interval from {found['n']} seeds"
    return "–".join("?" if found[end] is None else f"{found[end]:.{digits}f}" for end in ("low", "high"))


def words(name: str) -> str:
    """A name without underscores."""
    return name.replace("_", " ")


def mean_of(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a number over the runs that have it; None if none has."""
    found = [run[name] for run in runs if run.get(name) is not None]
    return sum(found) / len(found) if found else None
