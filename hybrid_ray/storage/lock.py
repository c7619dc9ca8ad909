"""One process at a time writes into a directory: a study, a ladder, a comparison, a run."""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from hybrid_ray.errors import StoreError, StudyLocked

__all__ = ["LOCK", "lock_directory"]

LOCK = "lock"


def lock_directory(path: Path) -> IO[str]:
    """Lock a directory until the file that this returns is closed; the directory is made if there is none.

    The lock is the operating system's (flock): it ends with the process that holds it, however that ends. Its file
    stays, and names the holder.

    Raises:
        StudyLocked: another process has it.
        StoreError: the directory can't be written, or its file system has no locks.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}: make it writable") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise StudyLocked(f"{path} is in use by {holder}: wait for it, or stop it first") from error
    except OSError as error:
        file.close()
        raise StoreError(
            f"{path} is on a file system without locks ({error.strerror or error}), so two processes could write it at "
            "once: mount it with locks (NFS: local_lock=none, Lustre: flock), or choose a folder elsewhere"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
    return file
