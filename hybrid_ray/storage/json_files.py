"""Reads JSON files and replaces them atomically.

As in Python's json module, NaN and Infinity are written by those names: a diverged run has such numbers. Every object
holds the SHA-256 of its other content, so that a damaged file is never read as another result.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.atomic import write_atomic

__all__ = ["differences", "dumps", "read_json", "write_json_atomic"]

_CHECK = "sha256"


def write_json_atomic(path: Path, data: Any) -> None:
    """Replace a JSON file atomically, with its ``sha256``. Raises `StoreError` as `write_atomic` does."""
    if isinstance(data, Mapping):
        data = {**data, _CHECK: _digest(data)}
    write_atomic(path, (dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file, without its ``sha256``; files written by others have none.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    if isinstance(data, dict) and _CHECK in data and data.pop(_CHECK) != _digest(data):
        raise StoreError(f"{path} is damaged: its content does not match its sha256")
    return data


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(dumps(data).encode("utf-8", "surrogatepass")).hexdigest()


def dumps(data: Any, indent: int | None = None) -> str:
    """``data`` as JSON text; numpy and torch scalars, paths and mappings are written as plain values.

    Raises:
        TypeError: ``data`` contains another type that JSON does not have.
    """
    return json.dumps(data, indent=indent, ensure_ascii=False, default=_plain)


def differences(stored: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> list[str]:
    """One line per changed value of two JSON objects: ``model.preset: 'nano' -> 'micro'``."""
    lines = []
    for key in sorted({*stored, *now}):
        where = f"{place}{key}"
        old, new = stored.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines.extend(differences(old, new, f"{where}."))
        elif old != new:
            lines.append(f"{where}: {old!r} -> {new!r}")
    return lines


def _plain(value: Any) -> Any:
    """Convert numpy and torch scalars, mappings and paths to types that JSON has."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")
