"""The directory of a study: its name, its lock, its job, and the settings that must not change.

    with StudyDirectory.create(job) as study: ...      a new one; a name in use becomes <name>-2, ...
    with StudyDirectory.open(path) as study: ...       an existing one, to continue it

Both hold ``lock`` (flock) until the block ends. A second process is refused; the lock of a dead process is released.
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import dump_job, job_from_text, parse_yaml, plain_values, read_job
from hybrid_ray.config.named import source_of
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.ray_tune.space import SearchSpace
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import differences, read_json
from hybrid_ray.storage.kept_machine import KeptMachine
from hybrid_ray.storage.lock import lock_directory
from hybrid_ray.storage.results_version import RESULTS_VERSION, check_study_version, warn_of_other_commit
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.environment import environment
from hybrid_ray.tasks import load_task
from hybrid_ray.tasks.load import words_of
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.placement import choose_device

__all__ = ["StudyDirectory", "identity"]

log = logging.getLogger("hybrid_ray")


class StudyDirectory:
    """A study directory, locked by this process."""

    def __init__(self, path: Path, job: JobConfig, lock: IO[str]) -> None:
        self.path, self.job, self._lock = path, job, lock
        shutil.rmtree(self.scratch, ignore_errors=True)  # left by a process that was killed
        self.store = StudyStore(path)

    @classmethod
    def create(cls, job: JobConfig, *, space: SearchSpace, source: Path | None = None) -> "StudyDirectory":
        """A new directory under ``job.studies_dir`` that holds the job, the environment and the study's identity."""
        made_from = identity(job, space)
        path = _free_directory(Path(job.studies_dir).absolute(), job.name)
        if path.name != job.name:
            old = path.with_name(job.name)
            log.warning("%s exists, so this is a new study, %s; hybrid-ray resume %s goes on with the old one",
                        old, path.name, old)  # fmt: skip
        lock = lock_directory(path)
        write_atomic(path / "job.yaml", dump_job(job).encode())
        study = cls(path, job, lock)
        record = {**environment(), **_of_names(job), "identity": made_from, "job": dump_job(job)}
        study.store.write_json("environment.json", record)
        study.store.event("created", source=None if source is None else str(source), pid=os.getpid())
        return study

    @classmethod
    def open(cls, path: Path) -> "StudyDirectory":
        """An existing study. Raises `ConfigError` if there is none, `StudyLocked` if another process uses it."""
        if not (path / "environment.json").is_file():
            raise ConfigError(
                f"{path} is not a study directory (it has no environment.json): give one such as studies/local"
            )
        check_study_version(path)
        lock = lock_directory(path)
        try:
            return cls(path.absolute(), _read_study_job(path), lock)
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> "StudyDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the rows to Parquet, remove Tune's files and release the lock."""
        if self._lock.closed:
            return
        self.store.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.close()

    @property
    def scratch(self) -> Path:
        """Folder for files of Ray Tune and Train; in the study, because all nodes of a cluster must share it."""
        return self.path / ".ray"

    @property
    def stored_identity(self) -> dict[str, Any]:
        """The settings that defined the study when it was made."""
        identity = read_json(self.path / "environment.json").get("identity")
        if not isinstance(identity, dict):
            raise StoreError(f"{self.path / 'environment.json'} has no identity, so this study can't be continued")
        return identity

    def run_directory(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.store.run_directory(number)

    def error_of(self, number: int) -> str:
        """The last line of the trial's error.txt; a process that was killed wrote none."""
        try:
            lines = (self.run_directory(number) / "error.txt").read_text(encoding="utf-8").strip().splitlines()
        except OSError:
            return "the trial's process died"
        return lines[-1] if lines else "the trial's process died"

    def set_job(self, job: JobConfig) -> None:
        """Write the job again, after a change that is allowed (the number of trials)."""
        self.job = job
        kept = read_json(self.path / "environment.json")
        self.store.write_json("environment.json", {**kept, "job": dump_job(job)})
        write_atomic(self.path / "job.yaml", dump_job(job).encode())

    def check_identity(self, now: Mapping[str, Any]) -> None:
        """Raises `ConfigError` with every difference if the settings that define the study have changed. Another
        commit of the code, or a changed file of the user's, is a warning.
        """
        if changed := differences(self.stored_identity, now):
            first = f"{self.path} can't be continued: its trials were made with other settings"
            instead = "change them back, or continue in a new study: hybrid-ray resume --fork"
            raise ConfigError([first, *changed, instead])
        kept = read_json(self.path / "environment.json")
        warn_of_other_commit(str(self.path), kept.get("git"))
        self._warn_of_other_sources(kept.get("sources", {}))

    def _warn_of_other_sources(self, recorded: Mapping[str, str]) -> None:
        files = {module: file for module, file in _own_files(self.job).items() if module in recorded}
        changed = [str(file) for module, file in files.items() if file.read_text(encoding="utf-8") != recorded[module]]
        if changed:
            log.warning(
                "%s has changed since %s began: finished trials are kept, and new ones use the file as it is now; "
                "environment.json holds the old text (sources)",
                ", ".join(changed), self.path,
            )  # fmt: skip

    @property
    def machine(self) -> KeptMachine:
        """The machine of the study's runs."""
        instead = "continue there, or continue in a new study: hybrid-ray resume --fork"
        return KeptMachine(self.path / "environment.json", instead=instead)


def _read_study_job(path: Path) -> JobConfig:
    """The job of a study. A missing job.yaml is written again; one that a user has edited is read, with a warning.

    Raises:
        ConfigError: job.yaml can't be used.
        StoreError: it lacks settings that it had.
    """
    written, as_run = path / "job.yaml", read_json(path / "environment.json")["job"]
    if not written.is_file() or not written.stat().st_size:
        log.warning("%s was lost; it is written again from environment.json", written)
        write_atomic(written, as_run.encode())
    job = read_job(written)
    before = job_from_text(as_run, written)
    gone = _leaves(parse_yaml(as_run, source="")) - _leaves(parse_yaml(written.read_text("utf-8"), source=""))
    if gone:
        raise StoreError(
            f"{written} lacks {min(gone)} and {len(gone) - 1} more settings that it had: put them back, or delete the "
            "file to have it written again"
        )
    if changes := differences(plain_values(before), plain_values(job)):
        log.warning("%s was edited: %s", written, "; ".join(changes))
    return job


def _leaves(values: Any, place: str = "") -> set[str]:
    """The dotted names of all settings in a job file."""
    if not isinstance(values, Mapping):
        return {place}
    return {leaf for key, value in values.items() for leaf in _leaves(value, f"{place}.{key}".lstrip("."))}


def identity(job: JobConfig, space: SearchSpace) -> dict[str, Any]:
    """Everything that a trial's score depends on, as plain values. All trials of a study must agree in them.

    The number of trials, budgets, concurrency and the confirmation are left out: they may change. Scheduler and sampler
    are included only if they are the user's own, because their rules are unknown here.

    Raises:
        ConfigError: the corpus or the device does not exist.
    """
    sections = ("model", "data", "train", "hybrid", "objective", "frontier")
    parts: dict[str, Any] = {name: asdict(getattr(job, name)) for name in sections}
    parts["data"].pop("cache_dir")
    parts["search"] = {"space": job.search.space, "ranges": space.ranges}
    brought = {place: getattr(job.search, place) for place in ("sampler", "scheduler") if place in job.search.named}
    parts["search"] |= brought
    parts["seed"] = job.seed
    if job.task.factory is not None:
        parts["task"] = {"factory": job.task.factory, "options": dict(job.task.options)}
    parts["workers"] = job.resources.workers
    parts["corpus"] = load_task(job.run()).fingerprint
    parts["machine"] = _machine(job)
    parts["results_version"] = RESULTS_VERSION
    plain: dict[str, Any] = json.loads(json.dumps(parts))
    return plain


def _of_names(job: JobConfig) -> dict[str, Any]:
    """The names of the job's model and loss in reports, and the text of the user's own files that the job names. The
    text is only a record: like the package's code, it may change without changing a result.
    """
    sources = {module: file.read_text(encoding="utf-8") for module, file in _own_files(job).items()}
    found: dict[str, Any] = {"task": words_of(job)}
    return {**found, "sources": sources} if sources else found


def _own_files(job: JobConfig) -> dict[str, Path]:
    """The user's own files that the job names, by module."""
    files = {name.partition(":")[0]: source_of(name, job.folders) for name in job.named.values()}
    return {module: file for module, file in files.items() if file is not None}


def _machine(job: JobConfig) -> dict[str, Any]:
    """Device and software of the runs. For the devices of a cluster see `StudyDirectory.machine`."""
    run = job.run()
    if job.resources.address != "local":
        return dict(machine(run, torch.device("cpu"))["software"])
    found = machine(run, choose_device(run))
    return {"device": found["hardware"]["device"], **found["software"]}


def _free_directory(parent: Path, name: str) -> Path:
    """Make ``name``, or the first free one of ``name-2``, ``name-3``, ... Two processes never get the same one."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            path = parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise StoreError(
            f"{parent} cannot be written: {error.strerror or error}; set studies_dir to a writable folder"
        ) from error
    raise StoreError(f"{parent} holds 99,999 studies named {name}: choose another name")
