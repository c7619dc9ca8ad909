"""What a study leaves on disk, written so that a kill or a full disk loses nothing that was finished.

Two kinds of write. *Append*: one JSON object a line (`JsonLines`), fsynced, a torn last line trimmed when the file is
opened again. *Replace*: a temporary file beside the target, fsynced, renamed over it (`write_atomic`), so that a reader
sees the old file or the new one and never a half. A write that fails raises `StoreError` and leaves the previous
content as it was.

JSON is Python's: NaN and Infinity are written by those names, since a diverged run really has such numbers.
"""

import json
import os
import tempfile
import time
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from hybrid_ray.errors import StoreError
from hybrid_ray.run_result import StepRecord
from hybrid_ray.storage.fsync import sync_to_disk

__all__ = [
    "TRIAL_STATES",
    "JsonLines",
    "StudyStore",
    "read_json",
    "read_jsonl",
    "write_atomic",
    "write_json_atomic",
    "write_steps_parquet",
    "write_trials",
]

TRIAL_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")  # as in Optuna


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
            _trim_torn_line(path)
        except OSError as error:
            raise _failed(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one line. Raises `StoreError` (and adds nothing) when it cannot be written whole."""
        line = (_dumps(row) + "\n").encode()
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
            raise _failed(self.path, error) from error


class StudyStore:
    """Writes a study directory. The driver alone has one; everybody else reads (`load_study`).

    ``trials.jsonl`` has one row a finished searched trial, ``events.jsonl`` what happened when. Both survive a SIGKILL
    at any moment and are simply opened again by a resumed driver.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._trials = JsonLines(self.directory / "trials.jsonl")
        self._events = JsonLines(self.directory / "events.jsonl")
        self._numbers = {int(row["number"]) for row in self.trials()}

    def __enter__(self) -> "StudyStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_trial(self, row: Mapping[str, Any]) -> None:
        """Keep a finished trial. ``number`` and ``state`` are required, and a number is kept once.

        Raises:
            StoreError: that number is already kept, or the row cannot be written.
        """
        number, state = int(row["number"]), row["state"]
        assert state in TRIAL_STATES, f"{state!r} is no trial state"
        if number in self._numbers:
            raise StoreError(f"{self._trials.path} already has trial {number}: a finished trial is kept once")
        self._trials.append(row)
        self._numbers.add(number)

    def amend_trials(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Change rows that are kept, by trial number. All of it or nothing: the file is replaced as a whole."""
        rows = [{**row, **changes.get(row["number"], {})} for row in self.trials()]
        write_atomic(self._trials.path, "".join(f"{_dumps(row)}\n" for row in rows).encode())

    def event(self, kind: str, **values: Any) -> None:
        """Note that something happened, stamped with the time (unix seconds)."""
        self._events.append({"time": time.time(), "event": kind, **values})

    def trials(self) -> list[dict[str, Any]]:
        """Rows of every finished trial, in the order they finished."""
        return read_jsonl(self.directory / "trials.jsonl")

    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.directory / "events.jsonl")

    def run_directory(self, number: int) -> Path:
        """Where trial ``number`` keeps its own files."""
        return self.directory / "trials" / f"{number:04d}"

    def write_json(self, name: str, data: Any) -> None:
        """Replace a JSON file of the study (``environment.json``, ``confirmation.json``)."""
        write_json_atomic(self.directory / name, data)

    def close(self) -> None:
        """Leave the trials as one table, ``trials.parquet``, beside the rows (which stay: a study can be extended)."""
        rows = self.trials()
        if rows:
            _write_parquet(rows, self.directory / "trials.parquet")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all. Raises `StoreError`, the previous file intact, when the disk refuses."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _failed(path, error) from error


def write_json_atomic(path: Path, data: Any) -> None:
    """Replace a JSON file whole or not at all. Raises `StoreError` as `write_atomic` does."""
    write_atomic(path, (_dumps(data, indent=2) + "\n").encode())


def write_trials(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the trials of a directory, rows and table, by these: for trials that nobody adds to."""
    write_atomic(directory / "trials.jsonl", "".join(f"{_dumps(row)}\n" for row in rows).encode())
    if rows:
        _write_parquet(rows, directory / "trials.parquet")


def write_steps_parquet(jsonl: Path, parquet: Path) -> Path:
    """Close a run's step records: ``steps.jsonl`` becomes ``steps.parquet``, atomically, and goes away.

    A step written twice (a run resumed from a checkpoint) counts once, as written last. Where pyarrow is not
    installed the lines stay as they are. Returns the file that now holds the steps.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return jsonl
    rows = {row["step"]: row for row in read_jsonl(jsonl)}
    _write_parquet([rows[step] for step in sorted(rows)], parquet, _step_kinds())
    jsonl.unlink()
    return parquet


def read_json(path: Path) -> Any:
    """A JSON file of a study. Raises `StoreError` when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from error


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
        raise _failed(path, error) from error
    rows = []
    last = max((number for number, line in enumerate(lines) if line), default=0)
    for number, line in enumerate(lines):
        row = _row(line)
        if row is not None:
            rows.append(row)
        elif line and number != last:
            raise StoreError(f"{path}:{number + 1} is damaged: remove that line to read the rest")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _trim_torn_line(path: Path) -> None:
    """Make the file end in a whole line: finish one that lacks only its newline, cut one that is torn."""
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


def _write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, kinds: Mapping[str, str] | None = None) -> None:
    """One Parquet file, atomically. ``kinds`` fixes the columns' types where a column may be empty."""
    import pyarrow
    import pyarrow.parquet

    table = list(rows)
    names = list(kinds) if kinds else list(dict.fromkeys(name for row in table for name in row))
    columns = {
        name: pyarrow.array([row.get(name) for row in table], type=kinds[name] if kinds else None) for name in names
    }
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    write_atomic(path, sink.getvalue().to_pybytes())


def _step_kinds() -> dict[str, str]:
    """Arrow types of a step record's fields, read off the record itself."""
    names = {int: "int64", float: "float64", bool: "bool", str: "string"}
    kinds = {}
    for field, hint in get_type_hints(StepRecord).items():
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds[field] = next((names[kind] for kind in options if kind in names), "string")
    return kinds


def _dumps(data: Any, indent: int | None = None) -> str:
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


def _failed(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be written: {error.strerror or error}; what was there before is unchanged")
