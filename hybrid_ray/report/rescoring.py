"""What marks a directory as a study scored anew: where its runs lie, what it was searched for, and what changed."""

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
"""File of a directory under ``<study>/rescored/``. The runs themselves stay where they are: nothing is copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescoring:
    """A study's trials measured by another objective than the one that steered the search."""

    study: Path  # whose runs these are
    searched: ObjectiveConfig  # what steered the search
    trials: int  # of the study, when they were scored anew
    diverged_now: tuple[int, ...] = ()  # finished trials that the new limit would have given up
    stopped_now: tuple[int, ...] = ()  # trials the old limit gave up: stopped early, by the new one

    def as_dict(self, place: Path) -> dict[str, Any]:
        """What `RESCORED` in ``place`` holds. The study is told relative to it, so that both can be moved together."""
        return {**asdict(self), "study": Path(os.path.relpath(self.study, place)).as_posix()}

    def notes(self, now: ObjectiveConfig) -> Iterator[str]:
        """What a reader must know, one sentence each."""
        changed = ", ".join(objective_changes(self.searched, now)) or "nothing changed"
        yield f"Scored anew from what {self.study.name} kept ({changed}). Nothing was trained."
        yield (
            "The search itself was steered by the old objective: it chose which settings were tried, which trials were "
            "stopped early, and which were confirmed. The best here is the best of what that search tried; trials that "
            "it stopped early stay so, since how they would have ended is not known."
        )
        now_there = len(read_jsonl(self.study / "trials.jsonl"))
        if now_there != self.trials:
            yield (
                f"The study had {self.trials} trials then and has {now_there} now, and its confirmation may be of "
                "others: score it anew again."
            )
        if self.diverged_now:
            yield (
                f"By the new max_degradation {_trials(self.diverged_now)} would have been given up as diverged, and "
                "counts as that, measured at the evaluation where it would have ended."
            )
        if self.stopped_now:
            yield (
                f"By the new max_degradation {_trials(self.stopped_now)} has not diverged, but was stopped where the "
                "old one gave it up: it counts as stopped early."
            )


def objective_changes(old: ObjectiveConfig, new: ObjectiveConfig) -> list[str]:
    """``mode score to net``, one text a changed setting."""
    return [f"{name} {getattr(old, name)} to {getattr(new, name)}" for name in _changed(old, new)]


def rescore_command(directory: str, old: ObjectiveConfig, new: ObjectiveConfig) -> str:
    """What scores a study anew so, as it is typed."""
    settings = [f"--set objective.{name}={getattr(new, name)}" for name in _changed(old, new)]
    return " ".join(["hybrid-ray rescore", directory, *settings])


def _changed(old: ObjectiveConfig, new: ObjectiveConfig) -> list[str]:
    names = [field.name for field in fields(ObjectiveConfig)]
    return [name for name in names if getattr(old, name) != getattr(new, name)]


def read_rescoring(directory: Path) -> Rescoring | None:
    """Of a directory that a study was scored anew in; None for a study of its own."""
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
        raise StoreError(f"{path} does not say what was scored anew: {error}") from error


def _trials(numbers: tuple[int, ...]) -> str:
    return f"trial {numbers[0]}" if len(numbers) == 1 else f"each of the trials {', '.join(map(str, numbers))}"
