"""Runs the training loop on several workers in a Ray Train ``TorchTrainer``. The only file here that uses Ray."""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hybrid_ray.config import ResourcesConfig, RunConfig
from hybrid_ray.errors import ConfigError, TrialOutOfMemory
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.training.hardware.node import RUN_LABEL, UnfitNode, check_node, group_label, node_selector
from hybrid_ray.training.reporter import NullReporter, Reporter, Reporters
from hybrid_ray.training.telemetry.heartbeat import FOLDER, Heartbeat

__all__ = [
    "MOST_PREEMPTIONS",
    "Attempts",
    "ReporterFactory",
    "fit_with_workers",
    "lost_its_node",
    "remove_groups",
    "train_worker",
    "was_preempted",
]

log = logging.getLogger("hybrid_ray")

Send = Callable[[dict[str, Any]], None]
ReporterFactory = Callable[[Send], Reporter]
"""Makes one rank's reporter from the function that sends metrics to Ray. It is pickled to the workers: build it from
plain data, so that it decides the same on every rank."""

_LOST_CONNECTION = re.compile(r"Connection (closed|reset) by peer|NCCL.*(remote process exited|peer)", re.IGNORECASE)
MOST_PREEMPTIONS = 20  # of one run that do not count as failures
CONTROLLER_FAILURES = 3  # of Ray Train's own controller; without a limit it would retry for ever
_NODE_DEATH_SECONDS = 20.0  # Ray declares a node dead after 15 seconds without an answer
COLLECTIVE_TIMEOUT = 600  # seconds that a rank may wait for the others before the run fails
_OUT_OF_MEMORY = "out-of-memory"


def was_preempted(error: BaseException) -> bool:
    """Whether a run's process got SIGTERM, its node went away or was unfit, which says nothing about the settings.

    If only the ranks that lost their connection to another one have reported, that one was probably preempted too.
    """
    from ray.exceptions import NodeDiedError

    workers = list(getattr(error, "worker_failures", {}).values())  # of a TrainingFailedError
    text = str(error)
    return (
        isinstance(error, NodeDiedError | UnfitNode)
        or getattr(error, "preempted", False)
        or "SIGTERM" in text
        or UnfitNode.__name__ in text
        or "node has died" in text
        or any(was_preempted(worker) for worker in workers)
        or (bool(workers) and all(_LOST_CONNECTION.search(str(worker)) for worker in workers))
    )


def lost_its_node(error: BaseException) -> bool:
    """Whether a process died because its node went away. Waits some seconds, since Ray may notice the process first."""
    import ray
    from ray.exceptions import RayActorError
    from ray.util.state import get_actor
    from ray.util.state.exception import RayStateApiException

    errors = [error, *getattr(error, "worker_failures", {}).values()]
    actors = [one.actor_id for one in errors if isinstance(one, RayActorError) and one.actor_id]
    here = ray.get_runtime_context().gcs_address
    try:
        found = [get_actor(actor, address=here) for actor in actors]
    except (RayStateApiException, ConnectionError):
        return False
    nodes, until = {actor.node_id for actor in found if actor}, time.monotonic() + _NODE_DEATH_SECONDS
    while nodes and time.monotonic() < until:
        if nodes & {node["NodeID"] for node in ray.nodes() if not node["Alive"]}:  # type: ignore[no-untyped-call]
            return True
        time.sleep(0.5)
    return False


def remove_groups(chosen: Callable[[str], bool]) -> int:
    """Remove the placement groups of runs whose `group_label` is chosen. Returns how many they were."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state import list_placement_groups
    from ray.util.state.exception import RayStateApiException

    here, alive = ray.get_runtime_context().gcs_address, ("state", "!=", "REMOVED")
    try:
        groups = list_placement_groups(here, filters=[alive], detail=True, limit=10_000, raise_on_missing_output=False)
    except (RayStateApiException, ConnectionError) as error:
        log.warning("Ray does not list its placement groups (%s): those of stopped runs are not removed", error)
        return 0
    conditions = {one.placement_group_id: (one.bundles or [{}])[0].get("label_selector", {}) for one in groups}
    labels = {
        group: str(condition[RUN_LABEL]).removeprefix("!in(").removesuffix(")")  # as `_trainer` wrote it
        for group, condition in conditions.items()
        if RUN_LABEL in condition
    }
    left = [group for group, label in labels.items() if chosen(label)]
    for group in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
    return len(left)


class Attempts:
    """The failures of one run so far. Preemptions are counted apart.

    Args:
        name: of the run, for messages.
        max_failures: how often it may fail and be tried again.
    """

    def __init__(self, name: str, *, max_failures: int) -> None:
        self._name, self._max_failures = name, max_failures
        self._failures = self._preemptions = 0

    def again(self, error: str, *, preempted: bool = False) -> bool:
        """Count a failure. Returns whether to try again, from the run's last checkpoint."""
        if preempted and self._preemptions < MOST_PREEMPTIONS:
            self._preemptions += 1
        else:
            self._failures += 1
        once_more = self._failures <= self._max_failures
        if once_more:
            log.warning("%s is tried again: %s", self._name, error)
        return once_more


def fit_with_workers(
    run: RunConfig,
    *,
    directory: Path,
    storage: Path,
    name: str,
    resources: ResourcesConfig,
    max_failures: int,
    nodes: Path | None = None,
    callbacks: Sequence[Any] = (),
    reporter_factory: ReporterFactory = lambda send: NullReporter(),
) -> RunResult:
    """Train with ``run.workers`` workers. Ray must be initialised.

    If a worker fails, all workers restart from the last checkpoint in the run directory, at most ``max_failures``
    times. Preemptions (`was_preempted`) do not count, nor does waiting for room on a cluster.

    Args:
        run: what every rank trains; the result equals that of one worker with the same batch, up to rounding.
        directory: the run directory, on storage that every worker can reach.
        storage: absolute path of Ray Train's own state, on such storage too.
        name: of this run in ``storage``; the same name resumes it.
        resources: of one worker. With ``gpus_per_worker`` above 0 it trains on GPUs over NCCL, else on CPUs over gloo.
        max_failures: how often a failed run is restarted.
        nodes: the driver's file on the nodes of a cluster (`hardware.node`).
        callbacks: of Ray Train (``TuneReportCallback`` inside a trial).
        reporter_factory: makes each rank's reporter. Callbacks receive what it sends.

    Raises:
        ConfigError: the job reserves GPUs that the run would not use.
        TrialOutOfMemory: a worker ran out of memory; the run is not restarted.
        ray.train.TrainingFailedError: the run failed more than ``max_failures`` times.
    """
    if resources.gpus > 0 and run.train.device != "cuda":
        raise ConfigError(
            f"resources.gpus_per_worker is {resources.gpus:g} but train.device is {run.train.device!r}, so the run "
            "could reserve GPUs and train on the CPU: set train.device to cuda, or resources.gpus_per_worker to 0"
        )
    directory = directory.resolve()
    marker = directory / _OUT_OF_MEMORY
    marker.unlink(missing_ok=True)
    config = {
        "run": run, "directory": str(directory), "reporter_factory": reporter_factory,
        "heartbeats": str(storage.resolve() / FOLDER), "nodes": nodes,
    }  # fmt: skip
    from ray.train import TrainingFailedError

    attempts = Attempts(str(directory), max_failures=max_failures)
    while True:
        # Ray moves the group of a controller whose node has gone away to other nodes, where it would take our room.
        remove_groups(lambda label: label == group_label(storage, name))
        trainer = _trainer(config, run=run, resources=resources, name=name, storage=storage, callbacks=callbacks)
        try:
            trainer.fit()
            break
        except TrainingFailedError as error:
            if marker.exists():
                break
            if resources.address != "local" and _found_no_room(error):
                log.warning("%s waits for room on the cluster", directory)
                continue
            if not attempts.again(
                _first_line(error), preempted=was_preempted(error) or (nodes is not None and lost_its_node(error))
            ):
                raise
    if marker.exists():
        raise TrialOutOfMemory(marker.read_text())
    return RunResult.from_dict(read_json(directory / "result.json"))


def _trainer(
    config: dict[str, Any],
    *,
    run: RunConfig,
    resources: ResourcesConfig,
    name: str,
    storage: Path,
    callbacks: Sequence[Any],
) -> Any:
    """The TorchTrainer of a run. ``config``: what `train_worker` gets; the rest: see `fit_with_workers`."""
    # Ray Train fetches one report per health check of its workers, every 2 s by default.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    train_v2: Any = ray.train  # V2 runs, but the type annotations are still those of V1
    use_gpu = resources.gpus > 0
    share = {"CPU": resources.cpus_per_worker, **({"GPU": resources.gpus} if use_gpu else {})}
    labels = {RUN_LABEL: f"!in({group_label(storage, name)})", **node_selector(config["nodes"])}
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT),
        scaling_config=train_v2.ScalingConfig(
            num_workers=run.workers, use_gpu=use_gpu, resources_per_worker=share, label_selector=labels
        ),
        run_config=train_v2.RunConfig(
            name=name,
            storage_path=str(storage.resolve()),
            failure_config=train_v2.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=CONTROLLER_FAILURES
            ),
            checkpoint_config=train_v2.CheckpointConfig(num_to_keep=1),
            callbacks=list(callbacks),
        ),
    )


def _found_no_room(error: BaseException) -> bool:
    """Whether the workers could not be placed in time, because nodes have gone away or others use them."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def train_worker(config: dict[str, Any]) -> None:
    """The function that every rank runs, inside the process group that Ray Train has made.

    Args:
        config: ``run``, ``directory``, ``reporter_factory`` and ``nodes`` of `fit_with_workers`, and the folder for
            heartbeats.
    """
    import ray.train
    import ray.train.torch
    import ray.util

    from hybrid_ray.training.loop import train  # here, as the process that holds the trainer need not import it

    marker = Path(config["directory"]) / _OUT_OF_MEMORY
    if marker.exists():
        return  # Ray restarted a run that ran out of memory: it would only fail again
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    run, directory, node = config["run"], Path(config["directory"]), ray.get_runtime_context().get_node_id()
    check_node(config["nodes"], run)
    name = f"a worker of {'/'.join(directory.parts[-2:])}"
    try:
        with Heartbeat(Path(config["heartbeats"]), run, name=name, node=node) as heartbeat:
            train(run, reporter=Reporters(config["reporter_factory"](ray.train.report), heartbeat), directory=directory)
    except TrialOutOfMemory as error:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(str(error))
        raise
