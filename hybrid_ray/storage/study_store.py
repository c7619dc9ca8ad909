"""Writes the files of a study so that a kill or a full disk loses no finished result.

A failed write raises `StoreError` and leaves the previous content unchanged.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import JsonLines, read_jsonl, remove_damaged_lines, write_jsonl
from hybrid_ray.storage.parquet import write_parquet

__all__ = ["TRIAL_STATES", "StudyStore", "write_trials"]

TRIAL_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")  # as in Optuna


class StudyStore:
    """Writes a study directory. Only the driver has one; all others read with `load_study`.

    ``trials.jsonl`` has one row per finished trial, ``events.jsonl`` one row per event with its time. Both survive a
    SIGKILL at any moment; a resumed driver opens them again.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._trials = JsonLines(self.directory / "trials.jsonl")
        self._events = JsonLines(self.directory / "events.jsonl")
        for name in ("trials.jsonl", "events.jsonl"):  # lost trials are rebuilt (ray_tune/recovery/rebuild.py)
            remove_damaged_lines(self.directory / name)
        self._numbers = {int(row["number"]) for row in self.trials()}

    def add_trial(self, row: Mapping[str, Any]) -> None:
        """Store the row of a finished trial; it must have ``number`` and ``state``.

        Raises:
            StoreError: a trial of that number is already stored, or the row cannot be written.
        """
        number, state = int(row["number"]), row["state"]
        assert state in TRIAL_STATES, f"{state!r} is no trial state"
        if number in self._numbers:
            raise StoreError(f"{self._trials.path} already has trial {number}: a finished trial is stored once")
        self._trials.append(row)
        self._numbers.add(number)

    def amend_trials(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Update stored rows, by trial number. The file is replaced atomically: all changes are made, or none."""
        rows = [{**row, **changes.get(row["number"], {})} for row in self.trials()]
        write_jsonl(self._trials.path, rows)

    def event(self, kind: str, **values: Any) -> None:
        """Record an event with the current time (Unix seconds)."""
        self._events.append({"time": time.time(), "event": kind, **values})

    def trials(self) -> list[dict[str, Any]]:
        """The rows of all finished trials, in the order they finished."""
        return read_jsonl(self.directory / "trials.jsonl")

    def events(self) -> list[dict[str, Any]]:
        return read_jsonl(self.directory / "events.jsonl")

    def run_directory(self, number: int) -> Path:
        """The directory of trial ``number``."""
        return self.directory / "trials" / f"{number:04d}"

    def write_json(self, name: str, data: Any) -> None:
        """Replace a JSON file of the study (``environment.json``, ``confirmation.json``)."""
        write_json_atomic(self.directory / name, data)

    def close(self) -> None:
        """Write the trials as ``trials.parquet`` too. ``trials.jsonl`` stays, since a study can be extended."""
        rows = self.trials()
        if rows:
            write_parquet(rows, self.directory / "trials.parquet")


def write_trials(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace ``trials.jsonl`` and ``trials.parquet`` in ``directory`` by ``rows``."""
    write_jsonl(directory / "trials.jsonl", rows)
    if rows:
        write_parquet(rows, directory / "trials.parquet")
