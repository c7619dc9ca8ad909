"""A control predictor: as long a displacement as in a recorded run, but in a random direction."""

from collections.abc import Sequence

import torch

from hybrid_ray.method.predictors.base import Number, Predictor
from hybrid_ray.method.weights import shard_number

__all__ = ["RandomDirection"]


class RandomDirection(Predictor):
    """D is Gaussian noise with the recorded length in each parameter group. One buffer: 4 bytes per parameter in fp32.

    The noise of a tensor depends only on the seed, the number of the plan, and the tensor and its shard. So ranks with
    the same shard draw the same noise, a resumed run draws the same noise as an uninterrupted one, and the global
    random state is not used.
    """

    plans: int

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        return {"plans": 0}

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        assert norms is not None
        self.plans += 1
        generator = torch.Generator(self.weights.device)
        for number, parameter in enumerate(self.weights.parameters):
            generator.manual_seed(hash((self.seed, self.plans, number, shard_number(parameter))) % 2**63)
            shape = self.direction.tensors[number].shape
            self.direction.put(number, torch.randn(shape, generator=generator, device=self.weights.device))
        self.rescale(norms)
