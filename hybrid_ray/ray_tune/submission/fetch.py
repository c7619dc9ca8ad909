"""`fetch`: bring a study from a cluster's shared storage to this machine, through the port of the dashboard."""

import hashlib
import json
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.ray_tune.submission.dashboard import Dashboard
from hybrid_ray.ray_tune.submission.jobs import POLL_SECONDS, Cluster, NoAnswer, job_info, job_log, send, stop_job
from hybrid_ray.storage.atomic import new_directory

__all__ = ["fetch"]

_SILENT_SECONDS = 60  # without a byte: the download has broken off
_DOWNLOAD_SECONDS = 24 * 3600  # Ray's limit for one download is 30 s by default
_CHUNK = 1 << 20


def fetch(study: str, target: Path | None = None, *, dashboard: Dashboard) -> Path:
    """Copy a study, ladder, comparison or run from the cluster to a new directory here.

    A job on the cluster packs it (`pack`); the archive is checked against its SHA-256 before it is unpacked. The
    directory appears only when it is whole.

    Args:
        study: its path on the cluster.
        target: default: ``studies/<name of the study>``.

    Returns:
        The new directory.

    Raises:
        ConfigError: the address can't be used, or the target exists; nothing was asked of the cluster.
        HybridRayError: no cluster answers, there is no such study, a driver is working on it, it did not arrive whole,
            or it can't be written here.
    """
    target = target or Path("studies") / PurePosixPath(study).name
    if problems := [*dashboard.problems(), *_problems(study, target)]:
        raise ConfigError(problems)
    again = f"hybrid-ray fetch {study} {target} --address {dashboard.address.rstrip('/')}"
    cluster = dashboard.connect(then=f"nothing here was changed; run it again: {again}")
    name = send(cluster, ["-m", "hybrid_ray.ray_tune.submission.pack", study])
    try:
        packed = _wait_until_packed(cluster, name)
        print(f"fetching {packed['bytes'] / 2**20:.1f} MiB", file=sys.stderr)
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=target.parent) as archive:
                _download(cluster, name, packed, archive, dashboard.headers)
                _unpack(archive, target)
    finally:
        with suppress(NoAnswer):  # then it ends after an hour
            stop_job(cluster, name)  # it removes the archive
    return target


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise HybridRayError(f"{target} cannot be written: {error}") from error


def _problems(study: str, target: Path) -> list[str]:
    problems = []
    if not PurePosixPath(study).is_absolute():
        problems.append(f"the study is {study!r} but must be an absolute path on the cluster's shared storage")
    if target.exists() or target.is_symlink():
        problems.append(f"{target} exists and would be overwritten: name another folder, hybrid-ray fetch STUDY FOLDER")
    return problems


def _wait_until_packed(cluster: Cluster, name: str) -> dict[str, Any]:
    """What `pack` says of the archive."""
    while True:
        ended = job_info(cluster, name).status.is_terminal()
        lines = job_log(cluster, name).splitlines()
        for line in lines:
            if line.startswith('{"archive"') and (packed := _packed(line)):
                return packed
        if ended:
            why = next((line for line in reversed(lines) if line.startswith("error: ")), "error: it was not packed")
            raise HybridRayError(f"on the cluster: {why.removeprefix('error: ')}")
        time.sleep(POLL_SECONDS)


def _packed(line: str) -> dict[str, Any] | None:
    """The line that `pack` prints; None while it is not whole."""
    try:
        packed: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    kinds = {name: type(value) for name, value in packed.items()}
    return packed if kinds == {"archive": str, "bytes": int, "sha256": str} else None


def _download(cluster: Cluster, name: str, packed: dict[str, Any], archive: IO[bytes], headers: dict[str, str]) -> None:
    """Write the archive to a file and check its SHA-256."""
    asked = {
        "node_id": job_info(cluster, name).driver_node_id,
        "filename": packed["archive"],
        "lines": -1,
        "timeout": _DOWNLOAD_SECONDS,
    }
    digest = hashlib.sha256()
    for chunk in _chunks(cluster, asked, headers):
        archive.write(chunk)
        digest.update(chunk)
    if digest.hexdigest() != packed["sha256"]:
        raise HybridRayError(
            f"{archive.tell()} of {packed['bytes']} bytes arrived from {cluster.address} and their SHA-256 is wrong: "
            f"{cluster.then}"
        )


def _chunks(cluster: Cluster, asked: dict[str, Any], headers: dict[str, str]) -> Iterator[bytes]:
    import requests

    url, when = f"{cluster.address}/api/v0/logs/file", f"during the download of {asked['filename']}"
    with cluster.asked(when):
        answer = requests.get(url, params=asked, headers=headers, stream=True, timeout=_SILENT_SECONDS)
    with answer:
        with cluster.asked(when):
            answer.raise_for_status()
        chunks = answer.iter_content(_CHUNK)
        while True:
            with cluster.asked(when):  # not around the yield: what the caller raises is not the cluster's
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def _unpack(archive: IO[bytes], target: Path) -> None:
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar, new_directory(target) as folder:
        tar.extractall(folder, filter="data")
