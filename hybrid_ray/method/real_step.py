"""A real step: forward, backward, judgement, clipping and the optimizer's step."""

from collections.abc import Callable
from typing import Any

import torch

from hybrid_ray.method.cycle import Cycle
from hybrid_ray.method.gradients import Closure, Gradient, clip_gradients, compute_gradients, measure_gradients
from hybrid_ray.method.guard.jump_check import JumpCheck
from hybrid_ray.method.guard.loss_scale import LossScale
from hybrid_ray.method.guard.module_buffers import ModuleBuffers
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.weights import Weights

__all__ = ["RealStep"]


class RealStep:
    """Does real steps. A step that is not applied leaves weights, optimizer state and the model's buffers as they were.

    Args:
        accumulate: micro-batches per step.
        clip_norm: the maximum gradient norm; None: no clipping.
        scaler: scales the loss for mixed precision in fp16.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int,
        clip_norm: float | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.scale = LossScale(scaler, optimizer) if scaler is not None and scaler.is_enabled() else None
        self._model = model
        self._optimizer = optimizer
        self._accumulate = accumulate
        self._clip_norm = clip_norm
        self._module_buffers = ModuleBuffers(model)

    def run(
        self,
        closure: Closure,
        weights: Weights,
        clock: StepClock,
        *,
        cycle: Cycle | None,
        check: JumpCheck,
        after_prediction: bool,
        judge: Callable[[Gradient, bool], bool],
        observe: Callable[[Gradient], None],
    ) -> tuple[Gradient, bool]:
        """Do one step. Returns its gradient and whether it was applied.

        Args:
            check: examines the first steps after predictions.
            after_prediction: measure the gradient along the prediction.
            judge: whether to apply a gradient, and whether it overflowed at this loss scale.
            observe: called with a gradient that will be applied, after clipping.
        """
        applied = False
        self._optimizer.zero_grad(set_to_none=True)  # clear gradients that the user may have left
        self._module_buffers.keep()
        try:
            loss = self._compute(closure, weights, clock)
            with clock.part("overhead"):
                gradient = self._measure(loss, weights, cycle if after_prediction else None)
                applied = judge(gradient, self.scale is not None and self.scale.settle(gradient))
            if applied:
                with clock.part("optimizer"):
                    clip_gradients(weights, gradient, self._clip_norm)
                with clock.part("overhead"):
                    observe(gradient)
                self._step_optimizer(gradient, weights, clock, cycle, check)
        finally:
            self._module_buffers.settle(applied=applied)
            self._optimizer.zero_grad(set_to_none=True)
        return gradient, applied

    def _compute(self, closure: Closure, weights: Weights, clock: StepClock) -> torch.Tensor:
        """Run forward and backward. Returns this rank's loss."""
        return compute_gradients(
            self._model,
            closure,
            accumulate=self._accumulate,
            clock=clock,
            scale=(lambda loss: loss) if self.scale is None else self.scale.scale,
            fresh=weights.parameters,
        )

    def _measure(self, loss: torch.Tensor, weights: Weights, cycle: Cycle | None) -> Gradient:
        """Compute loss and norm over all ranks and, with a cycle, the gradient along its prediction."""
        if self.scale is not None:
            self.scale.unscale()
        along = None if cycle is None else cycle.agreement.along_forecast(weights.gradients())
        return measure_gradients(weights, loss, along)

    def _step_optimizer(
        self, gradient: Gradient, weights: Weights, clock: StepClock, cycle: Cycle | None, check: JumpCheck
    ) -> None:
        """Step the optimizer. After each of the first predictions, also check that it did not undo the prediction."""
        judged = cycle is not None and check.due and gradient.along is not None and gradient.along <= 0.0
        before = cycle.agreement.read(weights.local()) if cycle is not None and judged else None
        with clock.part("optimizer"):
            self._optimizer.step()
        if cycle is not None and before is not None:
            check.observe(cycle.agreement, before, cycle.agreement.read(weights.local()), self._optimizer)
        check.predicted = 0

    def parts(self) -> dict[str, Any]:
        """The components that have a state."""
        return {} if self.scale is None else {"scale": self.scale}
