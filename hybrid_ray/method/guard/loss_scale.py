"""Mixed precision in fp16: gradients are computed from a scaled loss, so that small ones do not vanish."""

import math
from typing import Any

import torch

from hybrid_ray.errors import ConfigError
from hybrid_ray.method.gradients import Gradient

__all__ = ["LossScale"]


class LossScale:
    """A ``torch.amp.GradScaler`` in a real step, with ranks that agree.

    Gradients are unscaled as soon as they are there, so clipping, the predictor and all measures see true ones.
    Whether they overflowed is read off their norm over all ranks: each rank's own shard may be finite where another's
    is not, and a scale that differs between ranks would spoil every later sum.

    Args:
        scaler: enabled.
        optimizer: whose gradients it unscales.

    Raises:
        ConfigError: for parameters in fp16, which the scaler can't unscale.
    """

    def __init__(self, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if any(parameter.dtype is torch.float16 for parameter in parameters):
            raise ConfigError(
                "scaler is given but parameters are float16, whose gradients it can't unscale: keep the weights in "
                "float32 and compute the loss under torch.autocast"
            )
        self.scaler = scaler
        self._optimizer = optimizer

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """What to call backward on."""
        scaled: torch.Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self) -> None:
        """Divide the gradients that are there, in place."""
        self.scaler.unscale_(self._optimizer)

    def settle(self, gradient: Gradient) -> bool:
        """Set the next step's scale. Returns whether the gradient overflowed because of this step's.

        A loss that is not finite, or a gradient that overflows at a scale of 1, is no matter of scale.
        """
        if math.isfinite(gradient.norm):
            self.scaler.update()
            return False
        before = self.scaler.state_dict()
        self.scaler.update()
        lowered = before["scale"] * before["backoff_factor"]
        self.scaler.load_state_dict(before | {"scale": lowered, "_growth_tracker": 0})
        return math.isfinite(gradient.loss) and before["scale"] > 1.0

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)
