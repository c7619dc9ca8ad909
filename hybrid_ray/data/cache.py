"""Cached directories: each is built once and atomically, even if several processes ask for it at the same time."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_ray.errors import ConfigError
from hybrid_ray.storage.atomic import new_directory, write_atomic

__all__ = ["cache_root", "cached_directory", "is_whole", "remember", "remembered"]

MANIFEST = "manifest.json"


def cache_root(cache_dir: str | None) -> Path:
    """``cache_dir``, else ``$HYBRID_RAY_CACHE``, else ``~/.cache/hybrid_ray``; created if it does not exist.

    Raises:
        ConfigError: the folder can't be created or written, or there is no home folder.
    """
    asked = cache_dir or os.environ.get("HYBRID_RAY_CACHE") or "~/.cache/hybrid_ray"
    mend = "set data.cache_dir or $HYBRID_RAY_CACHE to a folder that can be written"
    try:
        root = Path(asked).expanduser()
        root.mkdir(parents=True, exist_ok=True)
    except RuntimeError as error:
        raise ConfigError(
            f"data.cache_dir is {asked!r} but there is no home folder to replace its ~: {mend}"
        ) from error
    except OSError as error:
        raise ConfigError(f"data.cache_dir {str(root)!r} can't be made ({error.strerror}): {mend}") from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ConfigError(f"data.cache_dir {str(root)!r} cannot be written: {mend}")
    return root


def cached_directory(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return ``root/name``; if it is missing or incomplete, ``build`` fills it first.

    ``build`` writes into a temporary directory in ``root``, which is renamed once it is on disk with a manifest of its
    file sizes. Processes that build the same name wait for each other on a lock, which is released when its holder
    dies. The next process removes what a killed one left behind.
    """
    final = root / name
    if is_whole(final):
        return final
    with _lock(root / f".{name}.lock"):
        if is_whole(final):
            return final
        for litter in (*root.glob(f".{name}.tmp-*"), final):
            shutil.rmtree(litter, ignore_errors=True)
        with new_directory(final) as made:
            build(made)
            sizes = {path.name: path.stat().st_size for path in sorted(made.iterdir())}
            (made / MANIFEST).write_text(json.dumps(sizes))
    return final


def is_whole(directory: Path) -> bool:
    """Whether the manifest, which is written last, exists and every file has the size that it records."""
    try:
        sizes = json.loads((directory / MANIFEST).read_text())
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remember(root: Path, key: str, value: str) -> None:
    """Store ``value`` under ``key``, to be read by ``remembered``. The last writer wins."""
    write_atomic(root / "notes" / key, value.encode())


def remembered(root: Path, key: str) -> str | None:
    """The value stored under ``key``, or None."""
    try:
        return (root / "notes" / key).read_text() or None
    except FileNotFoundError:
        return None
