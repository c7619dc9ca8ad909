"""Jobs that run on a cluster: follow the log, and stop."""

import asyncio
import sys
import time
from dataclasses import replace

from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.ray_tune.submission.dashboard import Dashboard
from hybrid_ray.ray_tune.submission.jobs import (
    POLL_SECONDS,
    Cluster,
    NoAnswer,
    job_info,
    job_log,
    stop_job,
    stop_seconds,
)

__all__ = ["follow", "logs", "stop"]

_ASKED_TO_STOP = 143
_QUIET_SECONDS = 60.0  # without a line of the log: is the cluster still there?


def logs(name: str, *, dashboard: Dashboard) -> int:
    """Print a job's log from its beginning until the job ends; returns the job's exit code, 143 if it was stopped.

    Raises:
        ConfigError: the address can't be used.
        HybridRayError: no cluster answers there, it has no such job, or the connection breaks off.
    """
    cluster = _follow_again(_connect(dashboard, "logs", name), name)
    job_info(cluster, name)
    return follow(cluster, name)


def stop(name: str, *, dashboard: Dashboard) -> None:
    """Ask a job to stop, wait until it has, and print what it said. Its study can be resumed.

    The driver gets SIGTERM and time to end its runs and write the study; then Ray kills it. A job that `submit` sent
    has `STOP_SECONDS`, another one what RAY_JOB_STOP_WAIT_TIME_S says in its environment, or 3 s.

    Raises:
        ConfigError: the address can't be used.
        HybridRayError: no cluster answers there, it has no such job, the connection breaks off, or the job had to be
            killed.
    """
    cluster = _connect(dashboard, "stop", name)
    if (info := job_info(cluster, name)).status.is_terminal():
        print(f"{name} has already ended: {info.status.value}", file=sys.stderr)
        return
    before, seconds = len(job_log(cluster, name)), stop_seconds(info)
    print(f"{name} was asked to stop; waiting up to {seconds} s", file=sys.stderr)
    asked = time.monotonic()
    stop_job(cluster, name)
    _wait(cluster, name)
    took = time.monotonic() - asked
    print(job_log(cluster, name)[before:], end="")
    if took >= seconds:  # Ray does not say whether it killed a job
        raise HybridRayError(f"{name} did not end within {seconds} s and was killed; its finished runs are kept")


def follow(cluster: Cluster, name: str) -> int:
    """Print a job's log until the job ends; returns its exit code, 143 if it or the following was stopped."""
    cluster = _follow_again(cluster, name)
    try:
        _print_log(cluster, name)
    except KeyboardInterrupt:
        stop_it = f"hybrid-ray stop {name} --address {cluster.address}"
        print(f"\n{name} keeps running; stop it with: {stop_it}", file=sys.stderr)
        return _ASKED_TO_STOP
    return _exit_code(cluster, name)


def _connect(dashboard: Dashboard, command: str, name: str) -> Cluster:
    if problems := dashboard.problems():
        raise ConfigError(problems)
    return dashboard.connect(then=f"ask again: hybrid-ray {command} {name} --address {dashboard.address.rstrip('/')}")


def _follow_again(cluster: Cluster, name: str) -> Cluster:
    then = f"the job goes on; ask again: hybrid-ray logs {name} --address {cluster.address}"
    return replace(cluster, then=then)


def _print_log(cluster: Cluster, name: str) -> None:
    """Print the log until the job ends. If the log breaks off, wait until the job's status says that it has ended."""
    broke = asyncio.run(_tail(cluster, name))
    if broke is not None:
        job_info(cluster, name)  # if that gets no answer either, there is nothing to wait for
        whole = f"hybrid-ray logs {name} --address {cluster.address}"
        print(f"the log broke off ({broke}); waiting for the job. The whole log: {whole}", file=sys.stderr)
    _wait(cluster, name)


async def _tail(cluster: Cluster, name: str) -> str | None:
    """Print the log while it grows. Returns why it broke off, None if it did not.

    Raises:
        NoAnswer: the log is quiet and the cluster does not answer.
    """
    log = cluster.client.tail_job_logs(name)

    async def more() -> str | None:
        with cluster.asked(f"when asked for the log of {name}"):
            return await anext(log, None)

    while True:
        coming = asyncio.create_task(more())
        while not (await asyncio.wait([coming], timeout=_QUIET_SECONDS))[0]:
            info = await asyncio.to_thread(job_info, cluster, name)
            if info.status.is_terminal():  # but the connection did not close
                return None
        try:
            text = coming.result()
        except NoAnswer as error:
            return error.reason
        if text is None:
            return None
        print(text, end="", flush=True)


def _wait(cluster: Cluster, name: str) -> None:
    while not job_info(cluster, name).status.is_terminal():
        time.sleep(POLL_SECONDS)


def _exit_code(cluster: Cluster, name: str) -> int:
    from ray.job_submission import JobStatus

    info = job_info(cluster, name)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return _ASKED_TO_STOP
    message = str(info.message).partition(", last available logs")[0]  # the log has been printed
    print(f"{name}: {message}", file=sys.stderr)
    return info.driver_exit_code or 1
