"""JSON Lines files that survive a killed writer: an incomplete last line is repaired or ignored."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.atomic import write_atomic, write_failed
from hybrid_ray.storage.json_files import dumps

__all__ = ["JsonLines", "read_jsonl", "repair_last_line", "write_jsonl"]


class JsonLines:
    """An append-only file of JSON objects, one per line, for one writer at a time.

    Opening repairs an incomplete last line that a killed writer left, with a warning. A failed append (disk full) is
    removed, so that the next one starts on a new line. The file is opened for each append, so it needs no closing.

    Args:
        path: the file; its folders are made if needed.
        sync: fsync every append. Without it, as for step records that come every few milliseconds, a line survives a
            killed process but not a power failure.

    Raises:
        StoreError: the file cannot be repaired or its folders cannot be made.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self._sync = sync
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            repair_last_line(path)
        except OSError as error:
            raise write_failed(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line. Raises `StoreError`, and adds nothing, if it cannot be written completely."""
        line = (dumps(row) + "\n").encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(line) != len(line):
                        raise OSError("No space left on device")
                    if self._sync:
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(before)
                    raise
        except OSError as error:
            raise write_failed(self.path, error) from error


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace all rows atomically. Raises `StoreError` as `write_atomic` does."""
    write_atomic(path, "".join(f"{dumps(row)}\n" for row in rows).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete rows; an empty list if there is no file. An incomplete last line is ignored.

    Raises:
        StoreError: a line before the last one is damaged, or the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise write_failed(path, error) from error
    rows = []
    last = max((number for number, line in enumerate(lines) if line), default=0)
    for number, line in enumerate(lines):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line and number != last:
            raise StoreError(f"{path}:{number + 1} is damaged: remove that line to read the rest")
    return rows


def repair_last_line(path: Path) -> None:
    """Make a file of JSON objects end in a complete line, with a warning.

    A last line that lacks only its newline gets it; an incomplete one is removed. Nobody else may be writing the file.
    """
    if not path.exists() or not (content := path.read_bytes()):
        return
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    whole = _row(content[start:]) is not None
    if whole and content.endswith(b"\n"):
        return
    with path.open("r+b") as file:
        if whole:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
        else:
            file.truncate(start)
        file.flush()
        os.fsync(file.fileno())
    lost = "nothing was lost" if whole else f"{len(content) - start} bytes were removed"
    warnings.warn(f"{path} ended in an incomplete line (its writer was killed): repaired, {lost}", stacklevel=4)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
