"""Atomic writes of files and directories: written next to the target, synced to disk, then renamed into place.

A reader sees the old content or the new content, never a part, even if the writer is killed.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.fsync import sync_to_disk

__all__ = ["new_directory", "publish_directory", "write_atomic", "write_failed"]


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file atomically, making its folders if needed.

    Raises:
        StoreError: the file cannot be written, for instance on a full disk; the previous file is unchanged.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise write_failed(path, error) from error


def write_failed(path: Path, error: OSError) -> StoreError:
    """The error to raise for a failed write to ``path``."""
    return StoreError(f"{path} cannot be written: {error.strerror or error}; its previous content is unchanged")


@contextmanager
def new_directory(target: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """An empty directory to fill. It becomes ``target`` when the block ends, and is removed if the block fails.

    Until then it is in ``.<name of the target>.tmp-*`` next to the target; a killed writer leaves that folder behind.

    Args:
        keep_first: if another writer has made ``target`` meanwhile, keep that one and drop this one. Without it, that
            raises an OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    made = scratch / "whole"  # a subfolder, since only the owner may read the folder of mkdtemp
    try:
        made.mkdir()
        yield made
        publish_directory(made, target, keep_first=keep_first)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish_directory(made: Path, target: Path, *, keep_first: bool = False) -> None:
    """Sync a finished directory to disk, then rename it to ``target``, which must not exist.

    ``keep_first`` as in `new_directory`.

    Raises:
        OSError: ``target`` exists (without ``keep_first``), or the disk failed.
    """
    for path in (*made.rglob("*"), made):
        sync_to_disk(path)
    try:
        os.rename(made, target)
    except OSError:
        if not (keep_first and target.is_dir()):
            raise
    sync_to_disk(target.parent)
