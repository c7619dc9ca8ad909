"""Runs without a search: ``train`` (one training run), ``compare`` (a comparison of arms), and learning-rate tuning."""

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.config.jobfile import dump_job, read_job, variant_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import baseline, check_arms
from hybrid_ray.evaluation.comparison.compare import compare
from hybrid_ray.evaluation.comparison.peers import check_peers
from hybrid_ray.evaluation.comparison.tuning import Tuned, tune
from hybrid_ray.evaluation.runner import Execute, cached
from hybrid_ray.method.ranks import rank
from hybrid_ray.ray_tune.cluster import ray_session, resource_concurrency
from hybrid_ray.ray_tune.nodes.follow import cluster_nodes
from hybrid_ray.ray_tune.runner import RayExecute
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.kept_machine import KeptMachine
from hybrid_ray.storage.lock import LOCK, lock_directory
from hybrid_ray.storage.results_version import run_settings, without_workers
from hybrid_ray.study.plan import plan_concurrency, resolve_auto, run_cache
from hybrid_ray.study.stopping import Budget, StopFlag
from hybrid_ray.tasks import load_task
from hybrid_ray.training.ray_worker import fit_with_workers
from hybrid_ray.training.reporter import NullReporter, Progress

__all__ = ["check_directory", "compare_arms", "train_once", "tune_learning_rate"]


def train_once(job: JobConfig, *, arm: Literal["baseline", "hybrid"], directory: Path) -> RunResult:
    """One run of a job, in this process or over its workers. A stopped run in the directory is continued.

    Raises:
        ConfigError: the job can't be run here, or the directory holds a finished run or one with other settings.
        StudyLocked: another process works in the directory.
    """
    job = resolve_auto(_as_before(job, directory))
    plan_concurrency(job, most=1)
    run = job.run() if arm == "hybrid" else baseline(job.run())
    check_directory(directory, run)
    with lock_directory(directory):
        check_directory(directory, run)  # again: it was not locked until now
        return _train(job, run, directory)


def _train(job: JobConfig, run: RunConfig, directory: Path) -> RunResult:
    if run.workers == 1:
        from hybrid_ray.training.loop import train

        return train(run, reporter=Progress(run.train.steps), directory=directory)
    steps, progress = run.train.steps, directory.resolve() / ".ray" / "progress.txt"
    with _scratch(directory) as storage, ray_session(job), _printed(progress):
        return fit_with_workers(
            run,
            directory=directory,
            storage=storage,
            name="train",
            resources=job.resources,
            max_failures=job.search.max_failures,
            reporter_factory=lambda send: Progress(steps, progress) if rank() == 0 else NullReporter(),
        )


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder for heartbeats and the state of Ray Train. No later command needs it: runs continue from checkpoints in
    their own directories.
    """
    scratch = directory / ".ray"
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _printed(path: Path) -> Iterator[None]:
    """Print what is appended to a file in the block: Ray shows nothing that workers print."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    ended = threading.Event()

    def follow() -> None:
        shown, last = 0, False
        while not last:
            last = ended.wait(0.5)
            text = path.read_text()
            print(text[shown:], end="", file=sys.stderr, flush=True)
            shown = len(text)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _as_before(job: JobConfig, directory: Path) -> JobConfig:
    """The job with the micro-batch that an earlier start in this directory chose for ``auto``, if there was one."""
    if job.train.micro_batch_size != "auto":
        return job
    if (directory / "run.json").is_file():
        resolved = read_json(directory / "run.json")["train"]["micro_batch_size"]
    elif (directory / "job.yaml").is_file():
        resolved = read_job(directory / "job.yaml").train.micro_batch_size
    else:
        return job
    return replace(job, train=replace(job.train, micro_batch_size=resolved))


def check_directory(directory: Path, run: RunConfig) -> None:
    """Check that a run may start or go on in a directory; its workers may differ from those it was stopped with.

    Raises:
        ConfigError: the directory holds a finished run, or a stopped run with other settings, or lies in a study.
    """
    around = next((parent for parent in directory.resolve().parents if (parent / LOCK).is_file()), None)
    if around is not None:
        raise ConfigError(
            f"{directory} lies in {around}, which another command writes: choose another folder with --out"
        )
    result, made_by = directory / "result.json", directory / "run.json"
    if result.is_file() and read_json(result)["status"] != "stopped":
        raise ConfigError(f"{directory} holds a run that has ended: choose another folder with --out")
    if made_by.is_file() and without_workers(read_json(made_by)) != without_workers(run_settings(run, directory)):
        raise ConfigError(f"{directory} holds a run with other settings: choose another folder with --out")


def compare_arms(job: JobConfig, *, directory: Path) -> dict[str, Any]:
    """Compare the arms of ``job.compare`` over several seeds, with statistics. Finished runs are not repeated.

    Returns what ``comparison.json`` in the directory holds; ``comparison.txt`` is the table.

    Raises:
        ConfigError: the job can't be run here, or the directory holds another job's comparison, or one of a machine
            with other hardware or software.
        StudyLocked: another process works in the directory.
        Stopped: a signal came.
    """
    directory = directory.absolute()
    job = resolve_auto(_as_before(job, directory))
    check_arms(job)
    most = min(plan_concurrency(one).runs for one in (job, *variant_jobs(job).values()))
    _check_claim(directory, job)
    check_peers(job, load_task(job.run()))
    flag = StopFlag()
    with lock_directory(directory), _executor(job, directory, most, flag) as execute:
        _check_claim(directory, job)  # again: it was not locked until now
        plain = _cached(job, execute, directory, instead="continue there, or choose another folder with --out")
        _claim(directory, job)
        return compare(job, execute=execute, directory=directory, execute_plain=plain)


def tune_learning_rate(job: JobConfig, *, directory: Path) -> Tuned:
    """Tune the learning rate of plain training by ``compare.lr_factors``, one run per value. Finished runs are kept.

    Raises:
        ConfigError: the job can't be run here, or the directory holds runs of other hardware or software.
        StudyLocked: another process works in the directory.
        NothingFinished: no run finished.
        Stopped: a signal came.
    """
    job, flag = resolve_auto(job), StopFlag()
    most = plan_concurrency(job).runs
    with lock_directory(directory), _executor(job, directory, most, flag) as execute:
        plain = _cached(job, execute, directory, instead="continue there, or remove the folder to tune again")
        return tune(job, execute=plain, directory=directory)


def _cached(job: JobConfig, execute: RayExecute, directory: Path, *, instead: str) -> Execute:
    """Execute for runs that depend on the job alone, with its cache. Chooses the kind of machine that trains: that of
    the folder's earlier runs.

    Raises:
        ConfigError: there is no such machine any more. ``instead``: what a user can do then.
    """
    kept = KeptMachine(directory / "machine.json", instead=instead)
    machine = execute.machine_of_runs(job.run(), known=kept.known)
    kept.check(machine)
    return cached(execute, run_cache(job), corpus=load_task(job.run()).fingerprint, machine=machine)


@contextmanager
def _executor(job: JobConfig, directory: Path, most: int, flag: StopFlag) -> Iterator[RayExecute]:
    with flag, _scratch(directory) as storage, ray_session(job) as there:
        flag.listen()  # because Ray has installed its own signal handler
        nodes = cluster_nodes(job, storage)
        if nodes is None:
            most = min(most, resource_concurrency(job, there))
        else:
            most = job.resources.max_concurrent or sys.maxsize  # as many of them as fit on the nodes at the time
        yield RayExecute(
            job,
            concurrency=most,
            flag=flag,
            budget=Budget(job),
            storage=storage,
            nodes=nodes,
            done=lambda run, result: print(f"  {_line(run, result)}", file=sys.stderr, flush=True),
        )


def _line(run: RunConfig, result: RunResult) -> str:
    """What a run did. The loss is that of the val split: the test split is only for the comparison itself."""
    rate = run.optimizer_settings.learning_rate
    name = f"{result.arm} (seed {result.seed}, {result.steps} steps, learning rate {rate:g})"
    if result.status != "finished":
        return f"{name}: {result.status}, {result.error}"
    return f"{name}: val loss {result.heldout['val'].loss:.4f} in the time of {result.time:.0f} plain steps"


def _check_claim(directory: Path, job: JobConfig) -> None:
    """Raises `ConfigError` where the directory holds another job's comparison."""
    written = directory / "job.yaml"
    if written.is_file() and written.read_text(encoding="utf-8") != _text_for(directory, job):
        raise ConfigError(f"{directory} holds the comparison of another job: choose another folder with --out")


def _claim(directory: Path, job: JobConfig) -> None:
    """Write the job to the directory, so that no other job can use it."""
    write_atomic(directory / "job.yaml", _text_for(directory, job).encode())


def _text_for(directory: Path, job: JobConfig) -> str:
    return dump_job(replace(job, name=directory.name))
