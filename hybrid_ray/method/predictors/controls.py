"""Controls that move as far as a recorded run, in a direction that knows nothing, or the wrong one."""

from collections.abc import Sequence

import torch

from hybrid_ray.method.predictors.base import Number, Predictor
from hybrid_ray.method.predictors.ema_nesterov import EmaNesterov
from hybrid_ray.method.weights import shard_number

__all__ = ["RandomDirection", "Reversed"]


class RandomDirection(Predictor):
    """D is Gaussian noise, of the recorded length in each parameter group. One buffer: 4 bytes a parameter in fp32.

    The noise of a tensor follows from the seed, the number of the plan and the tensor alone: ranks that hold the same
    numbers draw the same noise, a restored run goes on with its own, and global random state is not touched.
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


class Reversed(EmaNesterov):
    """D points against EMA-Nesterov's and has the recorded length in each parameter group. 8 bytes a parameter."""

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert norms is not None
        super().write_direction(horizon, factors, norms)
        self.rescale([-norm for norm in norms])
