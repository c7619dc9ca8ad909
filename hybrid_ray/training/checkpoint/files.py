"""Checkpoints that survive kills, full disks and corrupted files.

    checkpoint/step-00000300/
      weights.safetensors   whole tensors by name
      shared.pt             state that is equal on all ranks: trainer, data position, costs (plain values and tensors)
      rank-0.pt             state of one rank: random state; with FSDP also its chunks of the trainer's state
      manifest.json         written last: size and SHA-256 of every file, and the run's hash

A checkpoint is written to a temporary directory on the same file system; every file is fsynced, the manifest last; then
the directory is renamed and its parent fsynced. The previous checkpoint is kept, so a damaged one costs some steps but
not the run. A complete checkpoint is never rewritten, and never removed before a newer one is complete. Files are
loaded with ``torch.load(weights_only=True)``, which refuses to unpickle code.
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import CheckpointError
from hybrid_ray.method.ranks import any_rank, rank
from hybrid_ray.optim.local import local_part
from hybrid_ray.storage.atomic import publish_directory
from hybrid_ray.storage.fsync import sync_to_disk
from hybrid_ray.storage.results_version import run_settings, without_workers

__all__ = ["Checkpoint", "load", "save"]

log = logging.getLogger("hybrid_ray")

FOLDER = "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint whose files all match its manifest."""

    path: Path
    step: int

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors on the CPU."""
        return load_file(self.path / "weights.safetensors")

    def shared(self) -> dict[str, Any]:
        return _read(self.path / "shared.pt")

    @property
    def ranks(self) -> int:
        """The number of ranks that wrote it."""
        return len(list(self.path.glob("rank-*.pt")))

    def of_rank(self, number: int, *, lazily: bool = False) -> dict[str, Any]:
        """The state of one of the ranks that wrote it. ``lazily``: tensors are read when they are used."""
        return _read(self.path / f"rank-{number}.pt", lazily=lazily)


def save(
    directory: Path,
    step: int,
    run: RunConfig,
    *,
    weights: Mapping[str, Tensor],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    keep: int = 2,
) -> None:
    """Write a checkpoint of nominal step ``step`` into the run directory (collective: every rank calls it).

    A complete checkpoint of that step is not written again. ``keep`` is the number of checkpoints to keep.

    Raises:
        CheckpointError: it could not be written on some rank (disk full); earlier ones are unchanged.
    """
    root = directory / FOLDER
    final, scratch = root / f"step-{step:08d}", root / f".step-{step:08d}"
    whole = rank() == 0 and _is_whole(final, run)
    if rank() == 0 and not whole:
        shutil.rmtree(scratch, ignore_errors=True)
    if any_rank(whole):  # also a barrier: ranks write only after rank 0 has removed the old scratch folder
        if rank() == 0:
            _prune(root, final, keep)
        return
    error: Exception | None = None
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        _write(scratch / f"rank-{rank()}.pt", own)
        if rank() == 0:
            save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, _weights(scratch))
            _write(scratch / "shared.pt", shared)
    except (OSError, RuntimeError, SafetensorError) as problem:  # torch.save reports a full disk as a RuntimeError
        error = problem
    failed = any_rank(error is not None)
    if rank() == 0 and not failed:
        try:
            _publish(scratch, final, step, run)
        except OSError as problem:
            error = problem
    if any_rank(error is not None):
        shutil.rmtree(scratch, ignore_errors=True)
        reason = str(error) if error else "another rank could not write"
        raise CheckpointError(f"{final} could not be written: {reason}; earlier checkpoints are intact") from error
    if rank() == 0:
        _prune(root, final, keep)


def load(directory: Path, run: RunConfig) -> Checkpoint | None:
    """The newest complete checkpoint of this run; None if the run directory never had one.

    Damaged checkpoints are skipped with a warning. All ranks read the same files, so they find the same checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is usable, or they belong to another configuration.
    """
    candidates = _candidates(directory / FOLDER)
    for path in candidates:
        problem = _damage(path)
        if problem is None:
            manifest = json.loads((path / "manifest.json").read_text())
            if manifest["run"] != _hash(run, path):
                raise CheckpointError(
                    f"{path} belongs to another configuration: train in another directory, or remove {path.parent}"
                )
            return Checkpoint(path=path, step=manifest["step"])
        log.warning("checkpoint %s is not used: %s", path, problem)
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoint(s) in {directory / FOLDER} is usable: remove that folder to "
            "train from the start"
        )
    return None


def _candidates(root: Path) -> list[Path]:
    """Checkpoint folders, newest first, without scratch folders of killed writers, whose names begin with a dot."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def _publish(scratch: Path, final: Path, step: int, run: RunConfig) -> None:
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(scratch.iterdir())}
    manifest = {"step": step, "run": _hash(run, final), "files": files}
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=2))
    if final.exists():  # a damaged one: move it aside; `_prune` removes it
        aside = final.with_name(f".{final.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(final, aside)
    publish_directory(scratch, final)


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep ``newest``, which is complete, and the ``keep`` - 1 checkpoints before it; remove older ones.

    Checkpoints of later steps are damaged ones that the run went back behind. They do not count, and the run will
    replace them.
    """
    for path in [path for path in _candidates(root) if path.name <= newest.name][keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in root.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _is_whole(path: Path, run: RunConfig) -> bool:
    """Whether there is a checkpoint of this run that matches its manifest."""
    return _damage(path) is None and json.loads((path / "manifest.json").read_text())["run"] == _hash(run, path)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is complete."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
        return next(_differences(path, files), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest is unreadable ({type(error).__name__})"


def _differences(path: Path, files: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, expected in files.items():
        size = (path / name).stat().st_size
        if size != expected["size"]:
            yield f"{name} has {size} bytes but must have {expected['size']}"
        elif _sha256(path / name) != expected["sha256"]:
            yield f"{name} was changed after it was written"


def _read(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be loaded: {error}") from error
    return state


def _write(path: Path, state: Mapping[str, Any]) -> None:
    torch.save(_plain(state), path)
    sync_to_disk(path)


def _plain(value: Any) -> Any:
    """Convert string enums to str, mappings to dict and sharded tensors to this rank's chunk, recursively:
    ``torch.load`` would refuse other classes."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, DTensor):
        return local_part(value)
    return str(value) if isinstance(value, str) else value


def _weights(folder: Path) -> Path:
    return folder / "weights.safetensors"


def _hash(run: RunConfig, checkpoint: Path) -> str:
    """Hash of the settings of the run whose directory is two folders above ``checkpoint``."""
    settings = without_workers(run_settings(run, checkpoint.parent.parent))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
