"""The dashboard of a Ray cluster: whether its address may be used, and the connection.

Ray's job interface runs any code it receives (CVE-2023-48022), so nothing is sent over plain HTTP to another machine
unless the caller allows it, and the token is never printed.
"""

import ipaddress
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hybrid_ray.errors import HybridRayError
from hybrid_ray.ray_tune.submission.jobs import Cluster, reason

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

__all__ = ["Dashboard"]

log = logging.getLogger("hybrid_ray")

_SILENT_SECONDS = 120.0  # without a byte of an answer: the connection has broken off
_PREFERRED = "RAY_API_SERVER_ADDRESS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """Where a cluster is reached.

    Args:
        address: URL of the dashboard, such as ``http://127.0.0.1:8265``.
        token: sent as a bearer token.
        insecure: allow plain http to another machine.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    insecure: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers of every request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def problems(self) -> list[str]:
        """Why the address can't be used; empty if it can."""
        try:
            parts = urlsplit(self.address)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # brackets that do not close, a port that is no number
            usable = False
        if not usable:
            return [
                f"--address is {self.address!r} but must be the URL of the dashboard, such as http://127.0.0.1:8265"
            ]
        if parts.username or parts.password:
            return ["--address holds a user name or password: pass a token in RAY_AUTH_TOKEN instead"]
        if self._exposed and not self.insecure:
            return [
                f"--address {self.address} is another machine over plain http: others on the network could read the "
                "token and run code there; use https, forward its port to 127.0.0.1 (ssh -L), or accept the risk with "
                "--insecure"
            ]
        return []

    def connect(self, *, then: str) -> Cluster:
        """The cluster, after a request that was answered.

        Args:
            then: what the user can do if it answers no more (`Cluster`).

        Raises:
            HybridRayError: no cluster answers there, or it refuses the token.
        """
        if self._exposed:
            what = "the job with its token" if self.token else "the job"
            log.warning("--insecure: %s is sent unencrypted to %s", what, self.address)
        return Cluster(client=_client(self.address, self.headers), address=self.address.rstrip("/"), then=then)

    @property
    def _exposed(self) -> bool:
        """Whether others on the network can read what is sent there."""
        parts = urlsplit(self.address)
        return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _client(address: str, headers: dict[str, str]) -> "JobSubmissionClient":
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:  # Ray's own waits for ever
            return super()._do_request(method, endpoint, timeout=_SILENT_SECONDS, **more)

    sdk = "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"
    for part in (*sdk, "ray._private.runtime_env.packaging"):  # they log each file and socket
        logging.getLogger(part).setLevel(logging.WARNING)
    try:
        with _instead_of_the_environments(address):
            return Client(address, headers=headers or None)
    except AuthenticationError as error:
        refused = error.message.partition("\n")[0]
        raise HybridRayError(f"{address} refuses: {refused}; set RAY_AUTH_TOKEN to the cluster's token") from error
    except Exception as error:  # Ray's client does not check what it receives
        raise HybridRayError(
            f"no Ray cluster answers at {address}: {reason(error)}; check the address, and that it can be reached from "
            "here"
        ) from error


@contextmanager
def _instead_of_the_environments(address: str) -> Iterator[None]:
    """Ray prefers the addresses in RAY_API_SERVER_ADDRESS and RAY_ADDRESS to its argument, which we have checked."""
    before = os.environ.get(_PREFERRED)
    os.environ[_PREFERRED] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PREFERRED]
        else:
            os.environ[_PREFERRED] = before


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
