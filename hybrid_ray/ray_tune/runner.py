"""`RayExecute`: the runs outside a search (baseline, frontier, arms, confirmation) as parallel Ray tasks."""

import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import HybridRayError, TrialOutOfMemory
from hybrid_ray.evaluation.runner import Task, execute_here, failed_result
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS
from hybrid_ray.ray_tune.trial import in_one_line
from hybrid_ray.run_result import RunResult
from hybrid_ray.study.stopping import Budget, StopFlag
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.placement import choose_device

__all__ = ["RayExecute", "machine_of_runs"]

_POLL_SECONDS = 0.2
_LONGEST_WAIT = 600.0  # seconds to wait for the first free worker


class RayExecute:
    """An ``Execute`` (evaluation/runner.py) on the connected Ray.

    Args:
        job: its ``resources`` say what one run gets.
        concurrency: maximum number of runs at a time, at most as many as fit, so that runs and trials are timed under
            the same load.
        flag: once set, running tasks are cancelled and `Stopped` is raised.
        budget: once used up, nothing new starts; when the running tasks have ended, `Stopped` is raised.
        storage: folder for the state of Ray Train (several workers).
        done: called after each run with its result.
    """

    def __init__(
        self,
        job: JobConfig,
        *,
        concurrency: int,
        flag: StopFlag,
        budget: Budget,
        storage: Path,
        done: Callable[[RunResult], None] = lambda result: None,
    ) -> None:
        self._job, self._concurrency, self._flag, self._budget = job, concurrency, flag, budget
        self._storage, self._done = storage, done

    def __call__(self, tasks: Sequence[Task]) -> list[RunResult]:
        """Run all tasks and return their results in the same order. A run that raises or dies gives a failed result.

        Raises:
            Stopped: a signal came, or the budget was used up before every task had started.
        """
        import ray

        waiting = list(enumerate(tasks))
        running: dict[Any, tuple[int, Task, float]] = {}
        results: dict[int, RunResult] = {}
        remote = self._remote()
        try:
            while waiting or running:
                self._flag.raise_if_set()
                while waiting and len(running) < self._concurrency and not self._budget.used_up:
                    index, task = waiting.pop(0)
                    running[remote.remote(task)] = (index, task, time.monotonic())
                if waiting and not running:
                    self._budget.raise_if_used_up()
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in ready:
                    index, task, started = running.pop(reference)
                    results[index] = _result(task, reference)
                    self._budget.spend(time.monotonic() - started)
                    self._done(results[index])
        finally:
            self._cancel(list(running))
        return [results[index] for index in range(len(tasks))]

    def _cancel(self, references: list[Any]) -> None:
        import ray

        for reference in references:
            ray.cancel(reference, force=True)
        if references and self._job.resources.workers > 1:
            from hybrid_ray.ray_tune.placement_groups import sweep_groups

            sweep_groups()

    def _remote(self) -> Any:
        import ray

        resources = self._job.resources
        if resources.workers > 1:
            job, storage = self._job, self._storage
            return ray.remote(num_cpus=CONTROLLER_CPUS, max_retries=0)(
                lambda task: _run_with_workers(job, storage, task)
            )
        return ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus, max_retries=0)(_run)


def machine_of_runs(job: JobConfig, run: RunConfig, *, flag: StopFlag, limit: float = _LONGEST_WAIT) -> dict[str, Any]:
    """Hardware and software of the machine that trains, which may not be the driver's. Ray must be running.

    Args:
        limit: seconds to wait for free resources for one worker; others may be using the cluster.

    Raises:
        Stopped: a signal came.
        HybridRayError: no resources became free.
    """
    import ray

    needs = job.resources
    where = ray.remote(num_cpus=needs.cpus_per_worker, num_gpus=needs.gpus)(_machine_here).remote(run)
    deadline = time.monotonic() + limit
    try:
        while not ray.wait([where], timeout=_POLL_SECONDS)[0]:
            flag.raise_if_set()
            if time.monotonic() > deadline:
                raise HybridRayError(
                    f"no worker ({needs.cpus_per_worker} processors, {needs.gpus:g} GPUs) could start within {limit:g} "
                    "seconds because the cluster is busy: continue when it has room; finished runs are kept"
                )
    except BaseException:
        ray.cancel(where, force=True)
        raise
    found: dict[str, Any] = ray.get(where)
    return found


def _machine_here(run: RunConfig) -> dict[str, Any]:
    return machine(run, choose_device(run))


def _run(task: Task) -> RunResult:
    return execute_here([task])[0]


def _run_with_workers(job: JobConfig, storage: Path, task: Task) -> RunResult:
    """Run in a task that only holds a TorchTrainer; its workers reserve their own CPUs."""
    from hybrid_ray.training.ray_worker import fit_with_workers

    try:
        return fit_with_workers(
            task.run,
            directory=task.directory,
            storage=storage,
            name=f"run-{sha256(str(task.directory).encode()).hexdigest()[:16]}",
            resources=job.resources,
            max_failures=job.search.max_failures,
        )
    except TrialOutOfMemory as error:
        return failed_result(task.run, f"oom: {error}")
    except Exception as error:  # boundary: one failed run must not end the others
        return failed_result(task.run, in_one_line(error))


def _result(task: Task, reference: Any) -> RunResult:
    import ray
    from ray.exceptions import RayError

    try:
        result: RunResult = ray.get(reference)
    except RayError as error:
        return failed_result(task.run, in_one_line(error))
    return result
