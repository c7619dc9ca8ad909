"""Saves and restores the whole state of a run, so that a resumed run gives bit-identical results."""

from pathlib import Path
from typing import Any

import torch

from hybrid_ray.training.checkpoint import files as checkpoint
from hybrid_ray.training.costs import RunCosts
from hybrid_ray.training.distributed import full_weights, load_weights
from hybrid_ray.training.setup import Training, TrainSetup

__all__ = ["restore", "save"]


def save(directory: Path, setup: TrainSetup, training: Training, costs: RunCosts, *, keep: int = 2) -> None:
    """Checkpoint the run between two nominal steps (collective). Raises `CheckpointError` if it cannot be written."""
    trainer = {"trainer": training.trainer.state_dict()}
    shared = {
        "sampler": training.sampler.state_dict(),
        "costs": costs.state_dict(),
    }
    checkpoint.save(
        directory,
        training.trainer.phases.steps,
        setup.run,
        weights=full_weights(setup.module),
        shared=shared if setup.sharded else {**shared, **trainer},
        own={"random": _random_state(setup.device), **(trainer if setup.sharded else {})},
        keep=keep,
    )


def restore(directory: Path, setup: TrainSetup, training: Training, costs: RunCosts) -> bool:
    """Continue from the newest complete checkpoint; False if the directory never had one.

    Raises:
        CheckpointError: no checkpoint is usable, or they belong to another configuration.
    """
    found = checkpoint.load(directory, setup.run)
    if found is None:
        return False
    load_weights(setup.module, found.weights())
    shared, own = found.shared(), found.own()
    trainer = (own if setup.sharded else shared)["trainer"]
    trainer["settings"]["accumulate"] = setup.accumulate  # how a batch is cut is this start's own (training/start.py)
    training.trainer.load_state_dict(trainer)
    training.sampler.load_state_dict(shared["sampler"])
    costs.load_state_dict(shared["costs"])
    _set_random_state(own["random"], setup.device)
    return True


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
