"""What a trained model writes: what a reader sees of a run beside its losses."""

from hybrid_ray.method.ranks import rank
from hybrid_ray.training.setup import TrainSetup

__all__ = ["sample"]


def sample(setup: TrainSetup) -> str | None:
    """``train.sample_tokens`` tokens as the model writes them; rank 0's, None elsewhere.

    They leave no trace in the run. None too where the task has nothing to read, and for a model of which each rank has
    only a part (its forward would need every rank, a token at a time).
    """
    tokens = setup.run.train.sample_tokens
    wanted = tokens > 0 and setup.run.arm in ("baseline", "hybrid") and rank() == 0 and not setup.sharded
    if not wanted:
        return None
    with setup.precision():
        return setup.task.written_sample(setup.module, tokens=tokens)
