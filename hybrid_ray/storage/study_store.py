"""What a study leaves on disk, written so that a kill or a full disk loses nothing that was finished.

A write that fails raises `StoreError` and leaves the previous content as it was.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import JsonLines, read_jsonl, write_jsonl
from hybrid_ray.storage.parquet import write_parquet

__all__ = ["TRIAL_STATES", "StudyStore", "write_trials"]

TRIAL_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")  # as in Optuna


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
        write_jsonl(self._trials.path, rows)

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
            write_parquet(rows, self.directory / "trials.parquet")


def write_trials(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the trials of a directory, rows and table, by these: for trials that nobody adds to."""
    write_jsonl(directory / "trials.jsonl", rows)
    if rows:
        write_parquet(rows, directory / "trials.parquet")
