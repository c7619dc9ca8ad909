"""The temporary folder of a local Ray: a short path, private, and removed even if its driver was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hybrid_ray.errors import ConfigError

__all__ = ["session_folder", "temporary_root"]

_LONGEST = 36  # bytes; a socket's path can have 103 (macOS) or 107 (Linux), and Ray adds up to 67
_NAME = "hr-"  # followed by 8 characters
_INNER = "ray"  # Ray makes its folder accessible to all users, so it is put inside a private folder
_LOCK = "driver.lock"  # held (flock) by the driver; the operating system releases it when the driver is killed


@contextlib.contextmanager
def session_folder() -> Iterator[Path]:
    """A new folder for the files of a local Ray, which is removed after the block.

    Folders of drivers that were killed are removed first.
    """
    root = temporary_root()
    _sweep(root)
    folder = Path(tempfile.mkdtemp(prefix=_NAME, dir=root))
    try:
        with (folder / "lock").open("w") as lock:
            with contextlib.suppress(OSError):  # without locks on this file system, the folder is never swept
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / "lock").rename(folder / _LOCK)  # only a locked file gets this name
            yield folder / _INNER
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove the folders of this user's drivers that are gone: those whose lock is free."""
    for lock in root.glob(f"{_NAME}{'?' * 8}/{_LOCK}"):
        with contextlib.suppress(OSError), lock.open("r+") as file:  # of another user, in use, or just removed
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def temporary_root() -> Path:
    """Folder for a local Ray's files: the default one, or /tmp if its path is too long, as on macOS.

    Raises:
        ConfigError: neither can be used, or ``TMPDIR`` is not a writable folder.
    """
    asked = os.environ.get("TMPDIR")
    if asked and not (os.path.isdir(asked) and os.access(asked, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"TMPDIR is {asked!r} but that is not a writable folder, and Ray stores its files there: create the "
            "folder, name another, or unset TMPDIR"
        )
    try:
        usual = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError("there is no writable folder for temporary files: set TMPDIR to one") from error
    for root in (usual, Path("/tmp")):
        longest = root / f"{_NAME}12345678" / _INNER
        if len(os.fsencode(longest)) <= _LONGEST and os.access(root, os.W_OK | os.X_OK):
            return root
    raise ConfigError(
        f"TMPDIR is {usual}, whose path is too long for Ray's sockets, and /tmp is not writable: set TMPDIR to a "
        f"folder whose path has at most {_LONGEST - len(_NAME) - len(_INNER) - 10} bytes"
    )
