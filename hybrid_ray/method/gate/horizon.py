"""How many steps a prediction has."""

from hybrid_ray.config import HybridConfig

__all__ = ["choose_horizon"]


def choose_horizon(config: HybridConfig, *, confidence: float, lr_ratio: float, ratio: float) -> int:
    """Predicted steps of the next prediction, from 1 to ``prediction_horizon``.

    It is the maximum, except that ``scaled`` is maximum x confidence^2 x lr/lr_max: the prediction is shorter when
    confidence is lower or real steps are smaller (docs/method.md, section 3).

    Args:
        config: the mode and the maximum.
        confidence: in [0, 1].
        lr_ratio: lr / lr_max, in [0, 1].
        ratio: share of the maximum that the decision and recoveries (ReducePredictRatio) leave, in (0, 1].
    """
    most = config.prediction_horizon * ratio
    if config.horizon_mode == "scaled":
        most *= confidence**2 * lr_ratio
    return max(1, round(most))
