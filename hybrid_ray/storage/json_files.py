"""JSON files, replaced whole.

JSON is Python's: NaN and Infinity are written by those names, since a diverged run really has such numbers.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.atomic import write_atomic

__all__ = ["dumps", "read_json", "write_json_atomic"]


def write_json_atomic(path: Path, data: Any) -> None:
    """Replace a JSON file whole or not at all. Raises `StoreError` as `write_atomic` does."""
    write_atomic(path, (dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """A JSON file of a study. Raises `StoreError` when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def dumps(data: Any, indent: int | None = None) -> str:
    """JSON text; numpy and torch scalars, paths and mappings are written as plain values.

    Raises:
        TypeError: there is something else in it that JSON does not know.
    """
    return json.dumps(data, indent=indent, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy and torch scalars as numbers, paths as text, mappings and sequences as such."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")
