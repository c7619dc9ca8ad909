"""Rows that are appended and survive a kill: one JSON object a line, a torn last line repaired or left out."""

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
    """An append-only file of JSON objects, one a line. One writer at a time.

    Opening trims a last line that a killed writer left torn, with a warning. An append that fails (disk full) is cut
    off again, so that the next one starts on a clean line. No file is held open between appends: there is nothing to
    close, and nothing to lose by not closing it.

    Args:
        path: the file; its folders are made when missing.
        sync: fsync every append. False for step records, which come every few milliseconds: then a line is only
            handed to the operating system, so it survives a killed process but not a power cut.
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
        """Add one line. Raises `StoreError` (and adds nothing) when it cannot be written whole."""
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
    """Replace all rows, whole or not at all. Raises `StoreError` as `write_atomic` does."""
    write_atomic(path, "".join(f"{dumps(row)}\n" for row in rows).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows; none when there is no file. A last line still being written is left out.

    Raises:
        StoreError: a line before the last one is damaged.
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
    """Make a file of JSON objects end in a whole line, with a warning: a line that lacks only its newline is finished,
    a torn one is cut off. Only for a file that nobody else is writing.
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
    lost = "nothing was lost" if whole else f"{len(content) - start} bytes of it were dropped"
    warnings.warn(f"{path} ended in a torn line (a killed writer): repaired, {lost}", stacklevel=4)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
