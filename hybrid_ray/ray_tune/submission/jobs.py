"""Jobs on a Ray cluster, through Ray's client: send one, ask for its state and its log, stop it.

If the connection breaks off, or something else than a Ray cluster answers, Ray's client raises whatever its libraries
raise. Here that is one `NoAnswer`, which says what was asked and what the user can do.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hybrid_ray
import tune_spaces
from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.cluster import WORKER_SETTINGS

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = [
    "JOB_SETTINGS",
    "POLL_SECONDS",
    "STOP_SECONDS",
    "Cluster",
    "NoAnswer",
    "job_info",
    "job_log",
    "reason",
    "send",
    "stop_job",
    "stop_seconds",
]

POLL_SECONDS = 1.0
STOP_SECONDS = 120
"""From SIGTERM, with which Ray stops a job, to SIGKILL. Ray's default is too short to end the trials."""
_STOP_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S"
_RAYS_STOP_SECONDS = 3
JOB_SETTINGS = {**WORKER_SETTINGS, _STOP_SECONDS: str(STOP_SECONDS)}
"""Environment variables of a job, its driver and its workers."""
_AGENT_SECONDS = 60.0
_LONGEST_REASON = 300  # characters


class NoAnswer(HybridRayError):
    """The connection to a cluster broke off, or its answer was an error or no answer of a cluster.

    Args:
        message: for the user.
        reason: what the library said.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A cluster that has answered.

    Args:
        client: Ray's.
        address: URL of the dashboard.
        then: what the user can do if it answers no more.
    """

    client: "JobSubmissionClient"
    address: str
    then: str

    @contextmanager
    def asked(self, when: str) -> Iterator[None]:
        """For a block that asks the cluster through a library and does nothing else.

        Args:
            when: such as "during the download of x".

        Raises:
            NoAnswer: the block raised an exception that is not ours.
        """
        try:
            yield
        except HybridRayError:
            raise
        except Exception as error:  # Ray's client does not check what it receives
            why = reason(error)
            raise NoAnswer(f"{self._what_happened(error)} {when} ({why}): {self.then}", reason=why) from error

    def _what_happened(self, error: Exception) -> str:
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            return f"{self.address} refuses the token"
        if isinstance(error, RuntimeError | requests.HTTPError | aiohttp.ClientResponseError):
            return f"{self.address} answered with an error"
        if isinstance(error, requests.exceptions.InvalidJSONError):
            return f"{self.address} gave no usable answer"
        if isinstance(error, OSError | aiohttp.ClientError):
            return f"the connection to {self.address} broke off"
        return f"{self.address} gave no usable answer"


def reason(error: Exception) -> str:
    """What a library said, as one line of at most 300 characters or so."""
    said = " ".join(str(error).split())
    if not isinstance(error, OSError | RuntimeError) or not said:
        said = f"{type(error).__name__}: {said}"
    half = _LONGEST_REASON // 2
    return said if len(said) <= _LONGEST_REASON else f"{said[:half]} ... {said[-half:]}"


def send(cluster: Cluster, words: Sequence[str], *, folder: str | None = None) -> str:
    """Submit ``python WORDS`` with the code of this package; returns the job's name. Retries: a new cluster accepts no
    jobs for some seconds.

    Args:
        folder: sent too; the job's working directory.

    Raises:
        NoAnswer: the cluster refuses the job, or the connection breaks off; it may have the job all the same.
    """
    environment: dict[str, Any] = {
        "py_modules": [_folder(hybrid_ray), _folder(tune_spaces)],
        "env_vars": dict(JOB_SETTINGS),
    }
    if folder is not None:
        environment["working_dir"] = folder
    until = time.monotonic() + _AGENT_SECONDS
    while True:
        with cluster.asked("during the submission"):
            try:
                name = cluster.client.submit_job(entrypoint=shlex.join(["python", *words]), runtime_env=environment)
                return _text(name)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise
        time.sleep(POLL_SECONDS)


def job_info(cluster: Cluster, name: str) -> Any:
    """What the cluster knows of a job (`ray.job_submission.JobDetails`).

    Raises:
        NoAnswer: it does not say.
        HybridRayError: it has no such job.
    """
    with cluster.asked(f"when asked for the state of {name}"):
        try:
            return cluster.client.get_job_info(name)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            at = cluster.address
            raise HybridRayError(f"{at} has no job {name}: list its jobs with: ray job list --address {at}") from error


def job_log(cluster: Cluster, name: str) -> str:
    """All that a job has printed so far. Raises `NoAnswer`."""
    with cluster.asked(f"when asked for the log of {name}"):
        return _text(cluster.client.get_job_logs(name))


def stop_job(cluster: Cluster, name: str) -> None:
    """Ask a job to stop; does not wait. Raises `NoAnswer`."""
    with cluster.asked(f"when asked to stop {name}"):
        cluster.client.stop_job(name)


def stop_seconds(info: Any) -> int:
    """How long Ray waits for the end of this job after SIGTERM, before it kills it."""
    settings = (info.runtime_env or {}).get("env_vars") or {}
    try:
        return int(settings[_STOP_SECONDS])
    except (KeyError, TypeError, ValueError):  # not set, or nothing that Ray could use
        return _RAYS_STOP_SECONDS


def _text(answer: Any) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"{answer!r} is no text")
    return answer


def _folder(module: Any) -> str:
    return str(Path(module.__file__).parent)
