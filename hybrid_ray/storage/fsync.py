"""What makes a write last: a rename is only safe once the file and its folder are on disk."""

import os
from pathlib import Path

__all__ = ["sync_to_disk"]


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk. Raises OSError where the disk refuses."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
