"""Mixed precision in fp16: gradients are computed from a scaled loss, so that small gradients do not underflow."""

import math
from typing import Any

import torch

from hybrid_ray.errors import ConfigError
from hybrid_ray.method.gradients import Gradient

__all__ = ["LossScale"]


class LossScale:
    """Uses a ``torch.amp.GradScaler`` in real steps, with the same scale on every rank.

    Gradients are unscaled as soon as they are computed, so clipping, the predictor and all measurements see the true
    values. Overflow is detected from their norm over all ranks: one rank's shard may be finite while another's is not,
    and a scale that differs between ranks would make every later sum wrong.

    Args:
        scaler: an enabled scaler.
        optimizer: the optimizer whose gradients are unscaled.

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
        """The scaled loss, to call backward on."""
        scaled: torch.Tensor = self.scaler.scale(loss)
        return scaled

    def unscale(self) -> None:
        """Divide the existing gradients by the scale, in place."""
        self.scaler.unscale_(self._optimizer)

    def settle(self, gradient: Gradient) -> bool:
        """Set the next step's scale. Returns whether this step's scale made the gradient overflow.

        It returns False if the loss is not finite or the scale is 1 or less: then scaling is not the cause.
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
