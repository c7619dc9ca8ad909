"""The placebo: predicted steps do not change the weights. Any "gain" of it comes from skipped gradients alone."""

from collections.abc import Sequence

from hybrid_ray.method.predictors.base import Predictor

__all__ = ["Zero"]


class Zero(Predictor):
    """D = 0. No buffers."""

    moves = False

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        raise AssertionError("the zero predictor has no direction")
