"""JSON Lines files that survive a killed writer: an incomplete last line is repaired or ignored.

Every line ends in the CRC-32 of its other content (``crc``), so that a damaged line is never read as another row.
"""

import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.atomic import write_atomic, write_failed
from hybrid_ray.storage.json_files import dumps

__all__ = ["JsonLines", "read_jsonl", "remove_damaged_lines", "repair_last_line", "write_jsonl"]


_CHECK = "crc"


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
        line = _line(row)
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
    write_atomic(path, b"".join(map(_line, rows)))


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
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    rows = []
    last = max((number for number, line in enumerate(lines) if line), default=0)
    for number, line in enumerate(lines):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line and number != last:
            raise StoreError(f"{path}:{number + 1} is damaged: remove that line to read the rest")
    return rows


def remove_damaged_lines(path: Path) -> int:
    """Remove the lines that cannot be read, with a warning. Returns how many they were.

    Raises:
        StoreError: the file cannot be read or written.
    """
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    whole = [line for line in lines if _row(line) is not None]
    damaged = len(lines) - len(whole)
    if damaged:
        write_atomic(path, b"".join(line + b"\n" for line in whole))
        warnings.warn(f"{path} had {damaged} damaged lines, which were removed", stacklevel=3)
    return damaged


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
    if not isinstance(row, dict):
        return None
    return row if _CHECK not in row or row.pop(_CHECK) == _crc(row) else None


def _line(row: Mapping[str, Any]) -> bytes:
    return (dumps({**row, _CHECK: _crc(row)}) + "\n").encode()


def _crc(row: Mapping[str, Any]) -> int:
    return zlib.crc32(dumps(row).encode())
