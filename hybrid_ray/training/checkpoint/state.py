"""Saves and restores the whole state of a run, so that a resumed run gives bit-identical results.

With another number of workers it gives the same results up to rounding: gradients are summed in another order, and
dropout draws other numbers.
"""

from pathlib import Path
from typing import Any

import torch

from hybrid_ray.errors import CheckpointError
from hybrid_ray.method.ranks import rank, world_size
from hybrid_ray.training.checkpoint import files as checkpoint
from hybrid_ray.training.checkpoint.shards import divide
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
    shared, as_before = found.shared(), found.ranks == world_size()
    if "of_steps" not in shared["costs"]:
        raise CheckpointError(
            f"the checkpoints in {directory} were written by an older hybrid_ray: continue with the version that wrote "
            "them, or choose another folder with --out"
        )
    load_weights(setup.module, found.weights())
    trainer, divided_anew = _trainer_state(found, shared, setup, training)
    if not as_before:
        # Names and shapes of parameters are those of this rank's chunks and wrappers. The model is the same (`load`).
        trainer["origin"] = training.trainer.state_dict()["origin"]
    trainer["settings"]["accumulate"] = setup.accumulate  # how a batch is cut is this start's own (training/start.py)
    training.trainer.load_state_dict(trainer)
    if divided_anew:
        training.trainer.sample_anew()
    training.sampler.load_state_dict(shared["sampler"])
    costs.load_state_dict(shared["costs"])
    if as_before:
        _set_random_state(found.of_rank(rank())["random"], setup.device)
    else:
        torch.manual_seed(((setup.run.seed + 1) * 1_000_003 + found.step) * 1009 + rank())
    return True


def _trainer_state(
    found: checkpoint.Checkpoint, shared: dict[str, Any], setup: TrainSetup, training: Training
) -> tuple[dict[str, Any], bool]:
    """The trainer's state for this rank, and whether the model was divided among ranks in another way before."""
    was_sharded = "trainer" not in shared
    as_before = was_sharded == setup.sharded and (not was_sharded or found.ranks == world_size())
    if as_before and not was_sharded:
        return shared["trainer"], False
    if was_sharded:
        numbers = [rank()] if as_before else range(found.ranks)
        states = [found.of_rank(number, lazily=not as_before)["trainer"] for number in numbers]
    else:
        states = [shared["trainer"]]
    try:
        on_host = setup.run.train.optimizer_device == "host"
        return divide(states, training.optimizer, on_host=on_host), not as_before
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{found.path} was written by {found.ranks} workers and can't be divided among {world_size()} "
            f"({type(error).__name__}: {error}): continue with {found.ranks}"
        ) from error


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
