"""The directory of a ladder: its job, its lock, what was carried, and a study directory per rung.

studies/<ladder>/ladder.yaml      the job with all rungs
                 transfer.json    by rung: the learning rate and the settings carried up, with their origin
                 tuning/<rung>/   the runs that tuned the learning rate
                 <rung>/          an ordinary study; <rung>-from-nothing/ where the job asks for one
                 report.html, report.md, plots/
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import dump_job, read_job
from hybrid_ray.errors import ConfigError
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import differences, read_json, write_json_atomic
from hybrid_ray.storage.lock import LOCK, lock_directory

__all__ = ["JOB", "LadderDirectory", "from_nothing_name", "is_ladder", "job_of", "read_transfer"]

JOB, TRANSFER = "ladder.yaml", "transfer.json"
_STUDY = ("job.yaml", "environment.json")
_MAY_CHANGE = ("name", "studies_dir", "folders", "budget")


class LadderDirectory:
    """A ladder's directory, locked by this process while the block is entered.

    Made if there is none. If there is one, it must be of the same job; more rungs may have been added at the end.

    Raises:
        ConfigError: the directory holds something else, or a ladder of another job.
        StudyLocked: another process works on it.
    """

    def __init__(self, job: JobConfig) -> None:
        self.path, self._job = (Path(job.studies_dir) / job.name).absolute(), job
        self._lock: IO[str] | None = None

    def __enter__(self) -> "LadderDirectory":
        others = self.path.is_dir() and any(path.name != LOCK for path in self.path.iterdir())
        if others and not (self.path / JOB).is_file():
            raise ConfigError(f"{self.path} exists and is not a ladder: give the job another name")
        if (self.path / JOB).is_file():
            _check_same(self.path, read_job(self.path / JOB), self._job)
        self._lock = lock_directory(self.path)
        write_atomic(self.path / JOB, dump_job(self._job).encode())
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        self._lock.close()

    @property
    def transfer(self) -> dict[str, Any]:
        """By rung: what was carried to it (``transfer.json``)."""
        return read_transfer(self.path)

    def keep_transfer(self, rung: str, carried: Mapping[str, Any]) -> None:
        """Store what is carried to a rung, before its study begins, so that a resumed ladder carries the same."""
        write_json_atomic(self.path / TRANSFER, {**self.transfer, rung: dict(carried)})

    def tuning(self, rung: str) -> Path:
        return self.path / "tuning" / rung

    def has_study(self, name: str) -> bool:
        """Whether there is a study of this name. One that was killed while it was being made is removed."""
        place = self.path / name
        if all((place / file).is_file() for file in _STUDY):
            return True
        if place.is_dir() and not (place / _STUDY[-1]).is_file():
            shutil.rmtree(place)  # nothing has run in it
        return False


def is_ladder(directory: Path) -> bool:
    """Whether a directory holds a ladder."""
    return (directory / JOB).is_file()


def job_of(directory: Path) -> JobConfig:
    """The job of a ladder, which continues in this directory wherever it was moved."""
    path = directory.absolute()
    return replace(read_job(path / JOB), name=path.name, studies_dir=str(path.parent))


def read_transfer(directory: Path) -> dict[str, Any]:
    """What was carried to each rung so far."""
    return dict(read_json(directory / TRANSFER)) if (directory / TRANSFER).exists() else {}


def from_nothing_name(rung: str) -> str:
    """The name of the study that searches a rung from nothing."""
    return f"{rung}-from-nothing"


def _check_same(path: Path, stored: JobConfig, job: JobConfig) -> None:
    kept, wanted = list(stored.ladder.rungs.items()), list(job.ladder.rungs.items())
    changed = differences(_defining(stored), _defining(job))
    if wanted[: len(kept)] != kept:
        changed.append(f"ladder.rungs: {dict(kept)!r} -> {dict(wanted)!r} (rungs can only be added, above the last)")
    if changed:
        first = f"{path} holds a ladder with other settings"
        raise ConfigError([first, *changed, "change them back, or give the job another name"])


def _defining(job: JobConfig) -> dict[str, Any]:
    """Everything that the rungs share and that must not change."""
    plain = {name: value for name, value in asdict(job).items() if name not in _MAY_CHANGE}
    plain["resources"].pop("max_concurrent")
    for name in ("rungs", "from_nothing"):
        plain["ladder"].pop(name)
    return plain
