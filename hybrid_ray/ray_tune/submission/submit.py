"""`submit`: run a command on a Ray cluster by Ray's job submission."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import dump_job, named_modules, read_job
from hybrid_ray.config.named import module_folder
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import check_arms
from hybrid_ray.memory.micro_batch import check_open_micro_batch
from hybrid_ray.ray_tune.checks import check_search
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.ray_tune.submission.dashboard import Dashboard
from hybrid_ray.ray_tune.submission.jobs import send
from hybrid_ray.ray_tune.submission.running import follow
from hybrid_ray.tasks import load_task

__all__ = ["Command", "on_the_cluster", "submit", "take_along"]

_WRITE_TO_OUT = ("compare", "train")


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command to run on a cluster.

    Args:
        name: of the command (cli/cluster.py).
        target: the job file on this machine, or the study's directory on the cluster.
        of_study: which of these it is.
        overrides: the values of ``--set``.
        out: directory on the cluster that ``compare`` and ``train`` write to.
        options: other arguments of the command.
        modules: Python files and packages of the user's that are sent too. Those that a job file names need not be
            listed.
    """

    name: str
    target: str
    of_study: bool = False
    overrides: Sequence[str] = ()
    out: str | None = None
    options: Sequence[str] = ()
    modules: Sequence[Path] = ()


def submit(command: Command, *, dashboard: Dashboard, detach: bool = False) -> int:
    """Run a command on a cluster and wait for its end. The code of this package is sent too, and so are the user's own
    modules that the job names.

    The dependencies (pyproject.toml) must be installed on the cluster.

    Args:
        detach: print the job's name and return at once.

    Returns:
        The command's exit code; 143 if it was stopped.

    Raises:
        ConfigError: the command, the job or the address can't be used; nothing was sent.
        HybridRayError: no cluster answers there, it refuses, or the connection breaks off.
    """
    job = None if command.of_study else read_job(Path(command.target), command.overrides)
    problems = [*dashboard.problems(), *_path_problems(command, job), *_module_problems(command.modules)]
    if problems:
        raise ConfigError(problems)
    if job is not None:
        _check(job)
    listed = f"ray job list --address {dashboard.address.rstrip('/')}"
    cluster = dashboard.connect(then=f"before you submit again, check that the job does not run: {listed}")
    with tempfile.TemporaryDirectory(prefix="hr-job-") as folder:
        if job is not None:
            (Path(folder) / "job.yaml").write_text(dump_job(on_the_cluster(job)), encoding="utf-8")
            take_along(job, Path(folder))
        for module in command.modules:
            _copy_module(module, Path(folder))
        sent = folder if any(Path(folder).iterdir()) else None
        name = send(cluster, ["-m", "hybrid_ray.cli", *_words(command, job)], folder=sent)
    print(f"submitted as {name}", file=sys.stderr)
    if detach:
        print(name)
        return 0
    return follow(cluster, name)


def _words(command: Command, job: JobConfig | None) -> list[str]:
    """The command line that runs on the cluster. A job's overrides are in the job file that is sent."""
    out = [] if command.out is None else ["--out", command.out]
    if job is not None:
        return [command.name, "job.yaml", *command.options, *out]
    overrides = [word for override in command.overrides for word in ("--set", override)]
    return [command.name, command.target, *command.options, *overrides]


def _check(job: JobConfig) -> None:
    """What can be checked here. Raises `ConfigError`."""
    check_open_micro_batch(on_the_cluster(job))
    load_task(job.run())
    check_search(job, load_space(job))
    check_arms(job)


def _path_problems(command: Command, job: JobConfig | None) -> list[str]:
    if job is None:
        place, path = "the study", command.target
    elif command.name in _WRITE_TO_OUT:
        place, path = "--out", command.out or ""
    else:
        place, path = "studies_dir", job.studies_dir
    if PurePosixPath(path).is_absolute():
        return []
    return [
        f"{place} is {path!r} but must be an absolute path on storage that every node shares "
        f"when {'a job' if place == 'studies_dir' else command.name} is submitted: the folder of a submitted job is "
        "removed when it ends"
    ]


def _module_problems(modules: Sequence[Path]) -> list[str]:
    return [
        f"--module is {str(path)!r} but must be a Python file or the folder of a package"
        for path in modules
        if not (path.is_dir() or (path.suffix == ".py" and path.is_file()))
    ]


def on_the_cluster(job: JobConfig) -> JobConfig:
    """The job as it runs on the cluster: the driver connects to that cluster, and named modules are next to the job."""
    return replace(job, resources=replace(job.resources, address="auto"), folders=())


def take_along(job: JobConfig, target: Path) -> None:
    """Copy the modules that the job names into the folder that is sent, unless they are installed."""
    for name in named_modules(job):
        folder, top = module_folder(name, job.folders), name.partition(":")[0].partition(".")[0]
        if folder is None:
            continue
        file = Path(folder) / f"{top}.py"
        _copy_module(file if file.is_file() else Path(folder) / top, target)


def _copy_module(module: Path, target: Path) -> None:
    if module.is_file():
        shutil.copy(module, target)
    else:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(module, target / module.resolve().name, ignore=ignored, dirs_exist_ok=True)
