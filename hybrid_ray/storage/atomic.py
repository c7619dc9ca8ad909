"""Files and directories that appear whole or not at all: made beside the target, on disk, then renamed into place.

A reader sees what was there before or what is there now, and never a half, whatever kills the writer.
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
    """Replace a file whole or not at all. Raises `StoreError`, the previous file intact, when the disk refuses."""
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
    return StoreError(f"{path} cannot be written: {error.strerror or error}; what was there before is unchanged")


@contextmanager
def new_directory(target: Path, *, keep_first: bool = False) -> Iterator[Path]:
    """An empty directory to fill. It becomes ``target`` when the block ends, and is removed when the block fails.

    It lies in ``.<name of the target>.tmp-*`` beside the target; a killed writer leaves that behind.

    Args:
        keep_first: where another writer has made ``target`` meanwhile, its directory stays and this one is dropped.
            Else that is an OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
    made = scratch / "whole"  # a folder of its own, since mkdtemp's can be read by its owner alone
    try:
        made.mkdir()
        yield made
        publish_directory(made, target, keep_first=keep_first)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish_directory(made: Path, target: Path, *, keep_first: bool = False) -> None:
    """Rename a finished directory to ``target`` once everything in it is on disk. Raises OSError.

    ``target`` must not be there; ``keep_first`` as in `new_directory`.
    """
    for path in (*made.rglob("*"), made):
        sync_to_disk(path)
    try:
        os.rename(made, target)
    except OSError:
        if not (keep_first and target.is_dir()):
            raise
    sync_to_disk(target.parent)
