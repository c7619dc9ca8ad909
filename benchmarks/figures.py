"""Shared by the benchmarks: timing two sides in turn, medians and quartiles, tables, and where results are stored."""

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["GIB", "alternate", "folder", "keep", "middle", "spread", "table", "told"]

GIB = 2**30


def alternate(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    blocks: int,
    clock: Callable[[], float],
    before: Callable[[], object] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Seconds of ``first`` and ``second``, run in turn in alternating order; the first pair is a warmup and is dropped.

    ``before`` runs before each pair and is not timed.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for block in range(blocks + 1):
        before()
        for side in (0, 1) if block % 2 else (1, 0):
            started = clock()
            (first, second)[side]()
            times[side].append(clock() - started)
    return times[0][1:], times[1][1:]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; a single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, half, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, half, high


def middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def told(ratios: Sequence[float]) -> str:
    low, half, high = spread(ratios)
    return f"{half:.3f}  (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Text in aligned columns: the first left-aligned, the others right-aligned."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (zip(line, widths, strict=True) for line in lines)
    )


def folder(name: str | None) -> Path:
    """The folder for results: ``name``, else $OUT, else ./gpu_figures. It is created if it does not exist."""
    found = Path(name or os.environ.get("OUT") or "gpu_figures")
    found.mkdir(parents=True, exist_ok=True)
    return found


def keep(path: str | None, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a JSON list, if a path is given."""
    if path:
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")
