"""The Ray that a study runs on: started for it on this machine, or a running cluster.

Ray's output and usage statistics are turned off. The dashboard runs only if Train needs its State API. A local Ray
listens only on the loopback address and requires the session's token. ``ray`` is imported only after its environment
variables are set, because it reads them at import.
"""

import contextlib
import logging
import os
import resource
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.processors import cpu_count
from hybrid_ray.ray_tune.recovery.local_ray import LocalRay
from hybrid_ray.ray_tune.session_folder import session_folder

__all__ = [
    "CONTROLLER_CPUS",
    "Resources",
    "check_resources",
    "local_resources",
    "ray_session",
    "resource_concurrency",
    "run_needs",
    "worker_slots",
]

CONTROLLER_CPUS = 0.01  # for the task that holds a TorchTrainer; Tune rejects 0, and 1 can deadlock

WORKER_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # one report is read per interval (default: 2 s)
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per trial that we do not need: `recovery/preemption.py`
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # for a stopped trial to end; if it takes longer, the next one fails (2 s)
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",  # for the import of torch; each run then sets its number of threads
}
"""Read by Ray in the processes that run trials. A cluster gets them in its runtime environment."""

_SETTINGS = {
    **WORKER_SETTINGS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box at any verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own signal handler
}
_AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """CPUs and GPUs that a machine or cluster has, or that one run needs."""

    cpus: float
    gpus: float


def local_resources() -> Resources:
    """CPUs and GPUs of this machine."""
    import torch

    return Resources(cpus=cpu_count(), gpus=torch.cuda.device_count())


def run_needs(job: JobConfig) -> Resources:
    """CPUs and GPUs of one run with all its workers."""
    resources = job.resources
    return Resources(cpus=resources.workers * resources.cpus_per_worker, gpus=resources.workers * resources.gpus)


def resource_concurrency(job: JobConfig, there: Resources) -> int:
    """How many runs fit at a time. Raises `ConfigError` if not even one does. A cluster that has no worker node at the
    moment may get some (`ClusterNodes.start` waits for one).
    """
    resources = job.resources
    if resources.address != "local" and (there.cpus <= 0 or (resources.gpus and there.gpus <= 0)):
        return resources.max_concurrent or 1
    check_resources(job, there)
    fit = worker_slots(job, there) // resources.workers
    return min(fit, resources.max_concurrent or fit)


def check_resources(job: JobConfig, there: Resources) -> None:
    """Check that one run fits, because Ray would wait forever for missing resources.

    Raises:
        ConfigError: one run needs more CPUs or GPUs than there are.
    """
    needs, resources = run_needs(job), job.resources
    problems = []
    if needs.cpus > there.cpus:
        problems.append(
            f"resources: {resources.workers} workers x {resources.cpus_per_worker} processors need {needs.cpus:g} but "
            f"there are {there.cpus:g}: lower resources.workers or resources.cpus_per_worker"
        )
    if needs.gpus and _gpu_slots(job, there) < resources.workers:
        problems.append(
            f"resources: {resources.workers} workers x {resources.gpus:g} GPUs need {needs.gpus:g} but there are "
            f"{there.gpus:g}: lower resources.workers or resources.gpus_per_worker, or train on processors "
            "(train.device: cpu, resources.gpus_per_worker: 0)"
        )
    if problems:
        raise ConfigError(problems)


def worker_slots(job: JobConfig, there: Resources) -> int:
    """How many workers fit on a machine or node."""
    slots = int(there.cpus // job.resources.cpus_per_worker)
    return min(slots, _gpu_slots(job, there)) if job.resources.gpus else slots


def _gpu_slots(job: JobConfig, there: Resources) -> int:
    """How many workers fit on the GPUs. A fraction of a GPU must be on one GPU."""
    share = job.resources.gpus
    return int(there.gpus) * int(1 // share) if share < 1 else int(there.gpus // share)


@contextlib.contextmanager
def ray_session(job: JobConfig) -> Iterator[Resources]:
    """Connect to Ray or start it for the block; yields its resources. An existing connection is used and kept.

    Raises:
        ConfigError: no cluster answers at ``resources.address``, or a local Ray has no folder for its files.
        HybridRayError: a local Ray does not start, or dies in the block.
    """
    local = job.resources.address == "local"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except (ImportError, OSError) as error:
        raise HybridRayError(
            f"Ray cannot be imported ({error}): reinstall it with pip install --force-reinstall ray"
        ) from error

    if ray.is_initialized():
        yield _cluster_resources(job)
        return
    with (
        warnings.catch_warnings(),
        session_folder() if local else contextlib.nullcontext() as folder,
        _authentication(local=local),
    ):
        warnings.simplefilter("ignore", FutureWarning)
        if folder is None:
            _join(job.resources.address)
        else:
            _start_local(job, folder)
        ray_here = LocalRay(cluster=not local)
        try:
            yield _cluster_resources(job)
        except Exception:
            ray_here.check()  # its death has many faces
            raise
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # if so, the job's environment has the settings
    try:
        ray.init(
            address=address,
            runtime_env=None if submitted else {"env_vars": WORKER_SETTINGS},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        raise ConfigError(
            f"resources.address is {address!r} but no Ray cluster answers there ({error}): start one, or use local"
        ) from error


def _start_local(job: JobConfig, folder: Path) -> None:
    import ray
    from ray._private import ray_constants

    # Ray replaces a loopback address by the machine's address and listens on all interfaces, unless clusters are
    # disabled (the default on macOS). Only this process reads the flag; Ray passes the address to the others.
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",
            num_cpus=cpu_count() + _reserved(job),
            include_dashboard=job.resources.workers > 1,  # Train frees a stopped trial through the State API
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray raises many types here, and their messages say little
        ray.shutdown()
        files, processes = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        raise HybridRayError(
            f"Ray does not start on this machine ({type(error).__name__}: {' '.join(str(error).split())}): check free "
            f"memory, free disk space in {folder.parent.parent}, and the limits of open files (ulimit -n: "
            f"{_limit(files)}) and processes (ulimit -u: {_limit(processes)})"
        ) from error
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _cluster_resources(job: JobConfig) -> Resources:
    import ray

    total: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Resources(cpus=total.get("CPU", 0) - _reserved(job), gpus=total.get("GPU", 0))


def _reserved(job: JobConfig) -> int:
    """CPUs reserved for tasks that only hold a TorchTrainer, so that they never wait for their own workers."""
    return 1 if job.resources.workers > 1 else 0


@contextlib.contextmanager
def _authentication(*, local: bool) -> Iterator[None]:
    """Give a local Ray a random token, unless the user set one or another mode. A running cluster has its own token.

    Ray's processes inherit the token in their environment, which only this user can read. Afterwards the environment is
    restored, so that `submit` and other sessions of this process do not send the token.
    """
    before = {name: os.environ.get(name) for name in _AUTHENTICATION}
    if local:
        os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE") or "token"
        if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # otherwise Ray writes a token to the home folder
    _read_authentication()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_authentication()


def _read_authentication() -> None:
    """Make Ray read the authentication mode and the token again; it caches both. The mode must be read first."""
    from ray import _raylet

    raylet: Any = _raylet  # its type annotations lack these members
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
