"""The placebo: predicted steps leave the weights alone. Whatever it "gains" is what skipping gradients gains."""

from collections.abc import Sequence

from hybrid_ray.method.predictors.base import Predictor

__all__ = ["Zero"]


class Zero(Predictor):
    """D = 0. No buffers."""

    moves = False

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        raise AssertionError("the zero predictor has no direction")
