"""The record of a rescored study: where its runs are, the objective of its search, and what rescoring changed."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.errors import StoreError
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl

__all__ = ["RESCORED", "Rescoring", "objective_changes", "read_rescoring", "rescore_command"]

RESCORED = "rescored.json"
"""File in a directory under ``<study>/rescored/`` that marks it as rescored. The runs themselves are not copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescoring:
    """A study whose trials were scored by another objective than the one of its search."""

    study: Path  # the directory that holds the runs
    searched: ObjectiveConfig  # the objective of the search
    trials: int  # how many the study had when it was rescored
    diverged_now: tuple[int, ...] = ()  # finished trials that count as diverged by the new max_degradation
    stopped_now: tuple[int, ...] = ()  # trials that the old max_degradation ended; now they count as stopped early

    def as_dict(self, place: Path) -> dict[str, Any]:
        """The content of `RESCORED` in ``place``. The study's path is relative, so both can be moved together."""
        return {**asdict(self), "study": Path(os.path.relpath(self.study, place)).as_posix()}

    def notes(self, now: ObjectiveConfig) -> Iterator[str]:
        """Notes for the top of the report, one paragraph each."""
        changed = ", ".join(objective_changes(self.searched, now)) or "nothing changed"
        yield f"Rescored from the stored runs of {self.study.name} ({changed}). Nothing was trained."
        yield (
            "The old objective guided the search: it chose which settings were tried, which trials were stopped early, "
            "and which were confirmed. The best trial here is the best of those. Trials that the search stopped early "
            "stay stopped, since their final results are unknown."
        )
        now_there = len(read_jsonl(self.study / "trials.jsonl"))
        if now_there != self.trials:
            yield (
                f"The study had {self.trials} trials when it was rescored and has {now_there} now, and other trials "
                "may have been confirmed since: rescore it again."
            )
        if self.diverged_now:
            yield (
                f"The new max_degradation would have ended {_trials(self.diverged_now)} as diverged. It counts as "
                "diverged, with the values of the evaluation where it would have ended."
            )
        if self.stopped_now:
            yield (
                f"By the new max_degradation {_trials(self.stopped_now)} did not diverge, but the old limit ended it: "
                "it counts as stopped early."
            )


def objective_changes(old: ObjectiveConfig, new: ObjectiveConfig) -> list[str]:
    """``mode score to net``: one phrase per changed setting."""
    return [f"{name} {getattr(old, name)} to {getattr(new, name)}" for name in _changed(old, new)]


def rescore_command(directory: str, old: ObjectiveConfig, new: ObjectiveConfig) -> str:
    """The command line that rescores the study in ``directory`` with the settings of ``new``."""
    settings = [f"--set objective.{name}={getattr(new, name)}" for name in _changed(old, new)]
    return " ".join(["hybrid-ray rescore", directory, *settings])


def _changed(old: ObjectiveConfig, new: ObjectiveConfig) -> list[str]:
    names = [field.name for field in fields(ObjectiveConfig)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def read_rescoring(directory: Path) -> Rescoring | None:
    """The record in a rescored directory; None for an ordinary study.

    Raises:
        StoreError: the record is damaged.
    """
    path = directory / RESCORED
    if not path.exists():
        return None
    kept = read_json(path)
    try:
        return Rescoring(
            study=(directory / kept["study"]).resolve(),
            searched=ObjectiveConfig(**kept["searched"]),
            trials=kept["trials"],
            diverged_now=tuple(kept["diverged_now"]),
            stopped_now=tuple(kept["stopped_now"]),
        )
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged ({error}): rescore the study again") from error


def _trials(numbers: tuple[int, ...]) -> str:
    return f"trial {numbers[0]}" if len(numbers) == 1 else f"each of trials {', '.join(map(str, numbers))}"
