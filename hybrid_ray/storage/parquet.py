"""Writes rows as one Parquet file, atomically: for tables that are complete and then read by column."""

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hybrid_ray.errors import StoreError
from hybrid_ray.run_result import StepRecord
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.jsonl import read_jsonl

__all__ = ["read_steps", "write_parquet", "write_steps_parquet"]


def write_steps_parquet(jsonl: Path, parquet: Path) -> Path:
    """Convert a run's ``steps.jsonl`` to ``steps.parquet``. Returns the file that now holds the steps.

    If a step was written twice, by a run resumed from a checkpoint, the later row counts. Without pyarrow the lines
    stay as they are.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return jsonl
    rows = {row["step"]: row for row in read_jsonl(jsonl)}
    write_parquet([rows[step] for step in sorted(rows)], parquet, _step_kinds())
    jsonl.unlink()
    return parquet


def read_steps(directory: Path) -> list[dict[str, Any]]:
    """The steps of a run directory in order (`StepRecord` as plain values); none if it has no steps.

    The lines come first: if both files exist, the writer was killed before it removed them.

    Raises:
        StoreError: the file is damaged.
    """
    if rows := {row["step"]: row for row in read_jsonl(directory / "steps.jsonl")}:
        return [rows[step] for step in sorted(rows)]
    if not (directory / "steps.parquet").exists():
        return []
    import pyarrow
    import pyarrow.parquet

    path = directory / "steps.parquet"
    try:
        found: list[dict[str, Any]] = pyarrow.parquet.read_table(path, page_checksum_verification=True).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise StoreError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    return found


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, kinds: Mapping[str, str] | None = None) -> None:
    """Write ``rows`` as a Parquet file, atomically. ``kinds`` gives the columns' types, which empty columns need."""
    import pyarrow
    import pyarrow.parquet

    table = list(rows)
    names = list(kinds) if kinds else list(dict.fromkeys(name for row in table for name in row))
    columns = {
        name: pyarrow.array([row.get(name) for row in table], type=kinds[name] if kinds else None) for name in names
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, write_page_checksum=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def _step_kinds() -> dict[str, str]:
    """The Arrow type of each field of `StepRecord`."""
    names = {int: "int64", float: "float64", bool: "bool", str: "string"}
    kinds = {}
    for field, hint in get_type_hints(StepRecord).items():
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds[field] = next((names[kind] for kind in options if kind in names), "string")
    return kinds
