"""Read a job file with its overrides; write a job."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid_ray.config.job import JobConfig
from hybrid_ray.config.jobfile.relations import job_problems
from hybrid_ray.config.jobfile.rungs import check_rungs
from hybrid_ray.config.jobfile.values import check_values, plain_values, put
from hybrid_ray.config.jobfile.variants import check_variants
from hybrid_ray.config.jobfile.yaml_core import dump_yaml, parse_yaml
from hybrid_ray.config.ladder import LadderConfig
from hybrid_ray.config.named import module_folder
from hybrid_ray.config.task import TaskConfig
from hybrid_ray.errors import ConfigError

__all__ = ["dump_job", "job_from_dict", "job_from_text", "named_modules", "read_job"]


def read_job(path: Path | str, overrides: Sequence[str] = ()) -> JobConfig:
    """Read a job file, apply ``path.to.key=value`` overrides, check everything.

    Raises:
        ConfigError: the file is missing, empty or not YAML, or holds unknown keys, wrong types or impossible values.
    """
    source = Path(path)
    if not source.is_file():
        raise ConfigError(f"{source} is not a file: give the path of a job such as jobs/local.yaml")
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source} is not text in UTF-8: {error}") from error
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from error
    return job_from_text(text, source, overrides)


def job_from_text(text: str, source: Path, overrides: Sequence[str] = ()) -> JobConfig:
    """As `read_job`, from the text of the file ``source``, which need not exist."""
    data = parse_yaml(text, source=str(source))
    if data is None:
        raise ConfigError(f"{source} is empty: a job is a mapping of settings, for example train: {{steps: 600}}")
    if not isinstance(data, dict):
        raise ConfigError(f"{source} holds a {type(data).__name__} but a job is a mapping of settings")
    data.setdefault("name", source.stem)
    problems = [problem for text in overrides if (problem := _override(data, text)) is not None]
    return _located(job_from_dict(data, problems), source.absolute().parent)


def job_from_dict(data: Mapping[str, Any], problems: Sequence[str] = ()) -> JobConfig:
    """A checked job from plain values. ``problems`` that were found earlier are listed with the new ones.

    Raises:
        ConfigError: lists every problem.
    """
    job, wrong_values = check_values(data)
    found = [*problems, *wrong_values, *job_problems(job), *check_variants(job)[1], *check_rungs(job)[1]]
    if found:
        raise ConfigError(found)
    return job


def dump_job(job: JobConfig) -> str:
    """The job as YAML that `read_job` reads back to an equal job."""
    plain = plain_values(job)
    if job.task == TaskConfig():
        del plain["task"]
    if job.ladder == LadderConfig():
        del plain["ladder"]
    if not job.folders:
        del plain["folders"]
    return dump_yaml(plain)


def named_modules(job: JobConfig) -> list[str]:
    """All ``package.module:Name`` values of a checked job, of its rungs and of the variants that it compares."""
    jobs = [job, *check_rungs(job)[0].values(), *check_variants(job)[0].values()]
    return list(dict.fromkeys(name for one in jobs for name in one.named.values()))


def _located(job: JobConfig, beside: Path) -> JobConfig:
    """The job with ``folders`` filled in: the folders of the modules it names. Folders it already has come first."""
    there: list[str | Path] = [*job.folders, beside, Path.cwd()]
    found = (module_folder(name, there) for name in named_modules(job))
    return replace(job, folders=tuple(dict.fromkeys(folder for folder in found if folder is not None)))


def _override(data: dict[str, Any], text: str) -> str | None:
    """Apply one ``path.to.key=value`` in place; returns what is wrong with it."""
    path, separator, value = text.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        return f"--set {text!r} must look like path.to.key=value, for example train.steps=800"
    try:
        single = put(data, keys, parse_yaml(value, source=f"--set {text[:80]!r}: the value"))
    except ConfigError as error:
        return str(error)
    return None if single is None else f"--set {text!r}: {single} is a single value, not a section"
