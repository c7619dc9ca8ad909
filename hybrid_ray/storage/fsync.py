"""Syncs files and folders to disk: a rename is only durable once the file and its folder are on disk."""

import os
from pathlib import Path

__all__ = ["sync_to_disk"]


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk. Raises OSError if the disk fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
