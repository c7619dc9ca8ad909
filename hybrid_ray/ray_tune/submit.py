"""`submit`: send a job to a Ray cluster by Ray's job submission, follow its log and return its exit code.

Ray's job interface runs any code it receives (CVE-2023-48022), so nothing is sent over plain HTTP to another machine
unless the caller allows it, and the token is never printed.
"""

import asyncio
import ipaddress
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import hybrid_ray
import tune_spaces
from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import dump_job, read_job
from hybrid_ray.config.named import module_folder
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.evaluation.arms import check_arms
from hybrid_ray.memory.micro_batch import check_open_micro_batch
from hybrid_ray.ray_tune.checks import check_search
from hybrid_ray.ray_tune.cluster import WORKER_SETTINGS
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.tasks import load_task

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["submit"]

log = logging.getLogger("hybrid_ray")

_POLL_SECONDS = 1.0
_AGENT_SECONDS = 60.0
_ASKED_TO_STOP = 143


def submit(
    path: Path, *, address: str, overrides: Sequence[str] = (), token: str | None = None, insecure: bool = False
) -> int:
    """Run a job file on a cluster and wait for its end. The code of this package is sent too, and so are the user's own
    modules that the job names.

    The dependencies (pyproject.toml) must be installed on the cluster.

    Args:
        address: URL of the cluster's dashboard, such as ``http://127.0.0.1:8265``.
        overrides: ``path.to.key=value``, as for a local run.
        token: sent as a bearer token.
        insecure: allow plain http to another machine.

    Returns:
        The job's exit code; 143 if it was stopped.

    Raises:
        ConfigError: the job or the address can't be used; nothing was sent.
        HybridRayError: no cluster answers there, or it refuses.
    """
    job = read_job(path, overrides)
    problems = [*_address_problems(address, insecure=insecure), *_job_problems(job)]
    if problems:
        raise ConfigError(problems)
    load_task(job.run())
    check_search(job, load_space(job))
    check_arms(job)
    if _is_exposed(address):
        log.warning("--insecure: the job%s is sent unencrypted to %s", " with its token" if token else "", address)
    client = _client(address, token)
    with tempfile.TemporaryDirectory(prefix="hr-job-") as folder:
        (Path(folder) / "job.yaml").write_text(dump_job(_on_the_cluster(job)), encoding="utf-8")
        _take_along(job, Path(folder))
        name = _send(client, folder, command="ladder" if job.ladder.rungs else "run")
    print(f"submitted as {name}", file=sys.stderr)
    try:
        _follow(client, name)
    except KeyboardInterrupt:
        print(f"\n{name} keeps running; stop it with: ray job stop --address {address} {name}", file=sys.stderr)
        return _ASKED_TO_STOP
    return _exit_code(client, name)


def _address_problems(address: str, *, insecure: bool) -> list[str]:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return [f"--address is {address!r} but must be the URL of the dashboard, such as http://127.0.0.1:8265"]
    if parts.username or parts.password:
        return ["--address holds a user name or password: pass a token in RAY_AUTH_TOKEN instead"]
    if _is_exposed(address) and not insecure:
        return [
            f"--address {address} is another machine over plain http: others on the network could read the token and "
            "run code there; use https, forward its port to 127.0.0.1 (ssh -L), or accept the risk with --insecure"
        ]
    return []


def _is_exposed(address: str) -> bool:
    """Whether others on the network can read what is sent there."""
    parts = urlsplit(address)
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _job_problems(job: JobConfig) -> list[str]:
    check_open_micro_batch(_on_the_cluster(job))
    if Path(job.studies_dir).is_absolute():
        return []
    return [
        f"studies_dir is {job.studies_dir!r} but must be an absolute path on storage that every node shares "
        "when a job is submitted: the folder of a submitted job is removed when it ends"
    ]


def _on_the_cluster(job: JobConfig) -> JobConfig:
    """The job as it runs on the cluster: the driver connects to that cluster, and named modules are next to the job."""
    return replace(job, resources=replace(job.resources, address="auto"), folders=())


def _take_along(job: JobConfig, target: Path) -> None:
    """Copy the modules that the job names into the folder that is sent, unless they are installed."""
    for name in job.named.values():
        folder, top = module_folder(name, job.folders), name.partition(":")[0].partition(".")[0]
        if folder is None:
            continue
        if (file := Path(folder) / f"{top}.py").is_file():
            shutil.copy(file, target)
        else:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(folder) / top, target / top, ignore=ignored, dirs_exist_ok=True)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _folder(module: Any) -> str:
    return str(Path(module.__file__).parent)


def _client(address: str, token: str | None) -> "JobSubmissionClient":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for part in ("ray.dashboard", "ray._private.runtime_env.packaging"):  # they log each file and socket
        logging.getLogger(part).setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError as error:
        refused = error.message.partition("\n")[0]
        raise HybridRayError(f"{address} refuses: {refused}; set RAY_AUTH_TOKEN to the cluster's token") from error
    except (ConnectionError, RuntimeError) as error:
        raise HybridRayError(f"no Ray cluster answers at {address}: {error}") from error


def _send(client: "JobSubmissionClient", folder: str, *, command: str) -> str:
    """Submit the job in the folder; returns its name. Retries: a new cluster accepts no jobs for some seconds."""
    environment = {
        "working_dir": folder,
        "py_modules": [_folder(hybrid_ray), _folder(tune_spaces)],
        "env_vars": dict(WORKER_SETTINGS),
    }
    until = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return client.submit_job(entrypoint=f"python -m hybrid_ray.cli {command} job.yaml", runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise HybridRayError(f"the cluster refused the job: {error}") from error
            time.sleep(_POLL_SECONDS)


def _follow(client: "JobSubmissionClient", name: str) -> None:
    """Print the job's log until it ends. If the log breaks off, wait until the job's status says that it has ended."""

    async def lines() -> None:
        async for text in client.tail_job_logs(name):
            print(text, end="", flush=True)

    try:
        asyncio.run(lines())
    except RuntimeError as error:
        print(f"the log broke off ({error}); waiting for the job", file=sys.stderr)
    while not client.get_job_status(name).is_terminal():
        time.sleep(_POLL_SECONDS)


def _exit_code(client: "JobSubmissionClient", name: str) -> int:
    from ray.job_submission import JobStatus

    info = client.get_job_info(name)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return _ASKED_TO_STOP
    message = str(info.message).partition(", last available logs")[0]  # the log has been printed
    print(f"{name}: {message}", file=sys.stderr)
    return info.driver_exit_code or 1
