"""`RayExecute`: the runs outside a search (baseline, frontier, arms, confirmation) as parallel Ray tasks."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig, RunConfig
from hybrid_ray.errors import HybridRayError, TrialOutOfMemory
from hybrid_ray.evaluation.runner import Task, execute_one, failed_result
from hybrid_ray.ray_tune.cluster import CONTROLLER_CPUS
from hybrid_ray.ray_tune.nodes.follow import ClusterNodes
from hybrid_ray.ray_tune.recovery.watchdog import Watchdog
from hybrid_ray.ray_tune.trial import in_one_line
from hybrid_ray.run_result import RunResult
from hybrid_ray.study.stopping import Budget, StopFlag
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.node import check_node, node_selector
from hybrid_ray.training.hardware.placement import choose_device
from hybrid_ray.training.ray_worker import Attempts, was_preempted
from hybrid_ray.training.telemetry.heartbeat import FOLDER, Heartbeat

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
        storage: folder for heartbeats, and for the state of Ray Train (several workers).
        nodes: of a cluster, which may come and go: fewer runs start while fewer fit. None: a single machine.
        done: called after each run with its settings and its result.
    """

    def __init__(
        self,
        job: JobConfig,
        *,
        concurrency: int,
        flag: StopFlag,
        budget: Budget,
        storage: Path,
        nodes: ClusterNodes | None = None,
        done: Callable[[RunConfig, RunResult], None] = lambda run, result: None,
    ) -> None:
        self._job, self._concurrency, self._flag, self._budget = job, concurrency, flag, budget
        self._storage, self._nodes, self._done = storage, nodes, done

    def __call__(self, tasks: Sequence[Task]) -> list[RunResult]:
        """Run all tasks and return their results in the same order.

        A run that raises, or whose process dies, is tried again from its checkpoint, at most ``search.max_failures``
        times; preemptions do not count. Then it gives a failed result.

        Raises:
            Stopped: a signal came, or the budget was used up before every task had started.
        """
        import ray

        # The longest run starts first: if it started last, it would run alone at the end.
        waiting = deque(sorted(enumerate(tasks), key=lambda task: -task[1].run.train.steps))
        attempts = [Attempts(_name(task), max_failures=self._job.search.max_failures) for task in tasks]
        running: dict[Any, tuple[int, Task]] = {}
        results: dict[int, RunResult] = {}
        remote, hang = self._remote(), self._job.resources.hang_seconds
        watchdog = Watchdog(self._storage, least=hang, cluster=self._nodes is not None, ran=self._budget.spend)
        try:
            while waiting or running:
                self._flag.raise_if_set()
                watchdog.check()
                while waiting and len(running) < self._room() and not self._budget.used_up:
                    index, task = waiting.popleft()
                    options = {"label_selector": node_selector(self._file, controller=self._job.resources.workers > 1)}
                    running[remote.options(**options).remote(task)] = (index, task)
                if waiting and not running:
                    self._budget.raise_if_used_up()
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
                for reference in ready:
                    index, task = running.pop(reference)
                    end = self._end(task, reference)
                    if not end.final:
                        watchdog.ray.check()
                    if not end.final and attempts[index].again(str(end.result.error), preempted=end.preempted):
                        waiting.appendleft((index, task))
                        continue
                    results[index] = end.result
                    self._done(task.run, end.result)
            watchdog.look()
        finally:
            self._cancel(list(running))
        return [results[index] for index in range(len(tasks))]

    def machine_of_runs(self, run: RunConfig, *, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Hardware and software of the runs. On a cluster this chooses the nodes that train (`ClusterNodes.start`).

        Args:
            known: hardware and software of earlier runs that the new ones will be compared with.
        """
        if self._nodes is None:
            return machine_of_runs(self._job, run, flag=self._flag)
        return self._nodes.start(run, flag=self._flag, known=known)

    @property
    def _file(self) -> Path | None:
        return None if self._nodes is None else self._nodes.file

    def _room(self) -> int:
        return self._concurrency if self._nodes is None else min(self._concurrency, self._nodes.runs())

    def _cancel(self, references: list[Any]) -> None:
        import ray

        for reference in references:
            ray.cancel(reference, force=True)
        if references and self._job.resources.workers > 1:
            from hybrid_ray.ray_tune.recovery.placement_groups import sweep_groups

            sweep_groups(self._storage)

    def _remote(self) -> Any:
        import ray

        job, storage, resources, nodes = self._job, self._storage.absolute(), self._job.resources, self._file
        if resources.workers > 1:
            return ray.remote(num_cpus=CONTROLLER_CPUS, max_retries=0)(
                lambda task: _run_with_workers(job, storage, task, nodes)
            )
        return ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus, max_retries=0)(
            lambda task: _run(storage / FOLDER, task, nodes)
        )

    def _end(self, task: Task, reference: Any) -> "_End":
        import ray
        from ray.exceptions import RayError

        try:
            result: RunResult = ray.get(reference)
        except RayError as error:
            return _End(failed_result(task.run, in_one_line(error)), final=False, preempted=was_preempted(error))
        if result.status == "stopped":  # a run that hears SIGTERM stops by itself
            return _End(result, final=False, preempted=True)
        # Too little memory would only fail again, and `fit_with_workers` has already tried again.
        tried = self._job.resources.workers > 1 or str(result.error).startswith("oom: ")
        return _End(result, final=result.status != "failed" or tried)


@dataclass(frozen=True, slots=True)
class _End:
    """How one attempt at a run ended: whether to try it again, and whether that counts as a failure."""

    result: RunResult
    final: bool
    preempted: bool = False


def machine_of_runs(job: JobConfig, run: RunConfig, *, flag: StopFlag, limit: float = _LONGEST_WAIT) -> dict[str, Any]:
    """Hardware and software of the machine that trains, which may not be the driver's. Ray must be running.

    On CPUs as many processes answer as can run at a time, of which the first is heard: so all import at once what the
    runs need.

    Args:
        limit: seconds to wait for free resources for one worker; others may be using the cluster.

    Raises:
        Stopped: a signal came.
        HybridRayError: no resources became free.
    """
    import ray

    needs = job.resources
    ask = ray.remote(num_cpus=needs.cpus_per_worker, num_gpus=needs.gpus)(_machine_here)
    asked = [ask.remote(run) for _ in range(_processes(job))]
    deadline = time.monotonic() + limit
    try:
        while not (heard := ray.wait(asked, timeout=_POLL_SECONDS)[0]):
            flag.raise_if_set()
            if time.monotonic() > deadline:
                raise HybridRayError(
                    f"no worker ({needs.cpus_per_worker} processors, {needs.gpus:g} GPUs) could start within {limit:g} "
                    "seconds because the cluster is busy: continue when it has room; finished runs are kept"
                )
    except BaseException:
        for reference in asked:
            ray.cancel(reference, force=True)
        raise
    found: dict[str, Any] = ray.get(heard[0])
    return found


def _processes(job: JobConfig) -> int:
    """Processes that runs of one worker on CPUs use at a time, as far as there are CPUs; else 1."""
    import ray

    if job.resources.workers > 1 or job.resources.gpus:
        return 1
    cpus: float = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    fit = int(cpus // job.resources.cpus_per_worker)
    return max(1, min(fit, job.resources.max_concurrent or fit))


def _machine_here(run: RunConfig) -> dict[str, Any]:
    return machine(run, choose_device(run))


def _run(heartbeats: Path, task: Task, nodes: Path | None) -> RunResult:
    import ray

    check_node(nodes, task.run)
    node = ray.get_runtime_context().get_node_id()
    with Heartbeat(heartbeats, task.run, name=_name(task), node=node) as heartbeat:
        return execute_one(task, reporter=heartbeat)


def _name(task: Task) -> str:
    return "/".join(task.directory.parts[-2:])


def _run_with_workers(job: JobConfig, storage: Path, task: Task, nodes: Path | None) -> RunResult:
    """Run in a task that only holds a TorchTrainer; its workers reserve their own CPUs."""
    from hybrid_ray.training.ray_worker import fit_with_workers

    check_node(nodes, None)
    try:
        return fit_with_workers(
            task.run,
            directory=task.directory,
            storage=storage,
            name=f"run-{sha256(str(task.directory).encode()).hexdigest()[:16]}",
            resources=job.resources,
            max_failures=job.search.max_failures,
            nodes=nodes,
        )
    except TrialOutOfMemory as error:
        return failed_result(task.run, f"oom: {error}")
    except Exception as error:  # boundary: one failed run must not end the others
        return failed_result(task.run, in_one_line(error))
