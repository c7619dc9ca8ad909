"""Runs on the cluster as a job of its own: pack a study into one file that `fetch` downloads.

Ray's job submission sends files to a cluster but none back. Its dashboard does serve the files of a node's log
folder, byte for byte, on the same port and behind the same token. So the archive is put there, next to this job's log,
and removed when the job is stopped or after an hour.
"""

import hashlib
import json
import signal
import sys
import tarfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.storage.lock import LOCK, lock_directory

__all__ = ["pack"]

_KEPT_SECONDS = 3600.0
_MARKS = ("environment.json", "job.yaml", "run.json")  # a study or ladder, a comparison, a single run has one of them
_LEFT_OUT = (".ray", LOCK)  # of a running driver


def pack(study: Path, archive: Path) -> Mapping[str, str | int]:
    """Write a study, ladder, comparison or run to a tar file; returns the file's name, bytes and SHA-256.

    Raises:
        ConfigError: there is none.
        StudyLocked: a driver is working on it, so that its files may change.
    """
    if not any((study / mark).is_file() for mark in _MARKS):
        raise ConfigError(f"{study} is no study, ladder, comparison or run: it has none of {', '.join(_MARKS)}")
    lock = lock_directory(study) if (study / LOCK).is_file() else nullcontext()
    with lock, tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(study, arcname=".", filter=_kept)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"archive": archive.name, "bytes": archive.stat().st_size, "sha256": digest}


def _kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name in _LEFT_OUT else entry


def main(study: str) -> int:
    """Pack, print one line of JSON, and keep the archive until SIGTERM. Returns an exit code."""
    log = Path("/dev/stdout").resolve()  # Ray writes a job's output to <log folder>/job-driver-<name>.log
    archive = log.with_suffix(".tar.gz")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        print(json.dumps(pack(Path(study), archive)), flush=True)
        time.sleep(_KEPT_SECONDS)
    except (HybridRayError, OSError) as error:
        print(f"error: {error}")
        return 1
    finally:
        archive.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
