"""The hybrid trainer: it does one nominal step per call, real or predicted."""

from dataclasses import asdict
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError, Diverged
from hybrid_ray.method.checks import check_arguments, check_same_origin, check_same_settings, origin
from hybrid_ray.method.cycle import Cycle
from hybrid_ray.method.gate.decision import Gate
from hybrid_ray.method.gate.loss_trend import LossTrend
from hybrid_ray.method.gradients import Closure, Gradient, clip_gradients, compute_gradients, measure_gradients
from hybrid_ray.method.guard.divergence import Assessment, DivergenceMonitor, Level, Recovery
from hybrid_ray.method.guard.jump_check import JumpCheck
from hybrid_ray.method.guard.loss_scale import LossScale
from hybrid_ray.method.guard.module_buffers import ModuleBuffers
from hybrid_ray.method.guard.recovery import Backoff, carried_out, ends_cycle
from hybrid_ray.method.learning_rate import LearningRate
from hybrid_ray.method.phases import Phase, PhaseMachine, Position
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.method.step_result import StepResult
from hybrid_ray.method.trainer_stats import TrainerStats
from hybrid_ray.method.weights import Weights
from hybrid_ray.optim.offload import StateOffload
from hybrid_ray.run_result import Replay

__all__ = ["HybridTrainer", "StepResult"]


class HybridTrainer:
    """Train with some gradient steps replaced by predicted ones (docs/method.md, section 1).

    It replaces everything in a training loop between computing one loss and the next::

        trainer = HybridTrainer(model, optimizer, HybridConfig(), lr_scheduler=schedule, total_steps=10_000)
        for _ in range(10_000):
            result = trainer.step(lambda: loss_of(model, next(batches)))

    `step` documents what a step does. With several ranks, every number that a decision depends on is all-reduced first,
    so all ranks make the same decision.

    Args:
        model: any module; DDP and FSDP2 models reduce gradients only on the last micro-batch.
        optimizer: any ``torch.optim`` optimizer that can step without a closure. The parameters in its groups are
            the ones that are predicted.
        config: the settings; ``predictor="none"`` is a plain training loop that skips bad batches.
        lr_scheduler: stepped once per nominal step. Without one the loop may write ``lr`` into the parameter groups
            before each step; predicted steps follow the rate either way.
        total_steps: nominal steps of the whole run. Needed for settings that are shares of it (``first_fraction``,
            ``off_fraction``) and by predictors that follow its progress.
        accumulate: micro-batches per real step. The trainer divides each loss by it.
        clip_norm: the maximum gradient norm; None: no clipping.
        seed: seed of everything random: sampled coordinates, the random gate, rounding.
        scaler: scales the loss for mixed precision in fp16. The closure computes under ``torch.autocast``; the trainer
            scales, unscales before clipping, and updates the scale.
        replay: follow a recorded run's phases (and, in controls, its displacement norms) instead of confidence.
            As with ``predictor="none"``, most recoveries are then only reported, but every run skips a batch whose loss
            or gradient is not finite or spikes.

    Raises:
        ConfigError: for settings or parameters that can't work; the message lists all problems.
        UnsupportedOptimizer: for an optimizer that needs a closure (LBFGS) or would undo predictions (schedule-free).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: HybridConfig | None = None,
        *,
        lr_scheduler: LRScheduler | None = None,
        total_steps: int | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        seed: int = 0,
        scaler: torch.amp.GradScaler | None = None,
        replay: Replay | None = None,
    ) -> None:
        config = HybridConfig() if config is None else config
        check_arguments(
            model, optimizer, config, replay, total_steps=total_steps, accumulate=accumulate, clip_norm=clip_norm
        )
        self.model, self.optimizer, self.config = model, optimizer, config
        self.total_steps, self.accumulate, self.clip_norm, self.seed = total_steps, accumulate, clip_norm, seed
        self.weights = Weights(optimizer)
        self.clock = StepClock(self.weights.device)
        self.phases = PhaseMachine(config, None if replay is None else replay.phases, total_steps=total_steps)
        self.monitor = DivergenceMonitor(config.divergence_sigma)
        self.backoff = Backoff(gated=config.gate_kind == "confidence")
        self.stats = TrainerStats(self.weights.device)
        self.cycle_done = True
        self._gate = Gate(config, seed=seed)
        self._trend = LossTrend()
        self._rate = LearningRate(optimizer, lr_scheduler)
        self._replay = replay
        self._only_advise = replay is not None or config.predictor.name == "none"
        self._cycle = self._new_cycle()
        self._offload = StateOffload(optimizer, self.weights.device) if config.offload_optimizer else None
        self._scale = LossScale(scaler, optimizer) if scaler is not None and scaler.is_enabled() else None
        self._module_buffers = ModuleBuffers(model)
        self._jump_check = JumpCheck()
        self._after_prediction = False
        self._worst = Level.NORMAL  # worst level since the last window ended
        self._level = Level.NORMAL
        self._events: list[str] = []  # of the current step
        self._forced = False  # whether the next phase must be FULL

    def step(self, closure: Closure) -> StepResult:
        """Do one nominal step, real or predicted, and one step of the schedule.

        A real step calls ``closure`` once per micro-batch (``accumulate`` times) and does the rest itself: ``backward``
        after each call, clipping, ``optimizer.step()``, ``zero_grad``. The closure takes the next micro-batch and
        returns its mean loss, a scalar that depends on the model. It must not call ``backward`` or divide the loss by
        ``accumulate``.

        A predicted step moves the weights in place. It never calls the closure, so no batch is consumed, and
        ``loss`` of its result is None.

        A batch is skipped if its loss or gradient is not finite or spikes: weights, optimizer state and the model's
        buffers (BatchNorm) keep their values. With a ``scaler`` a gradient that overflowed is skipped too, as usual; it
        does not reach the predictor or the divergence monitor. The schedule still advances, because it counts nominal
        steps.

        Raises:
            Diverged: if non-finite numbers or a diverging loss return after every recovery.
            ConfigError: if the closure's loss is not a scalar with a gradient, or the closure called backward itself.
            UnsupportedOptimizer: if the optimizer undid the first predictions (it keeps its own copy of the weights).
        """
        self._events, self._forced = [], False
        if self.weights.changed:
            self._start_over()
        self._rate.note()
        if self._cycle is not None:
            self._cycle.follow(self._rate)
        position, gradient, applied = self.phases.position, None, True
        with self.stats.step(position.phase, after=self.phases.steps):
            if position.phase is Phase.PREDICT:
                self._predict(position)
            else:
                gradient, applied = self._train(closure, position)
            self._rate.advance(optimizer_stepped=applied)
            with self.clock.part("overhead"):
                self._move_on()
        return StepResult(
            phase=position.phase,
            predicted=gradient is None,
            loss=None if gradient is None else gradient.loss,
            confidence=0.0 if self._cycle is None else self._cycle.confidence.value,
            grad_norm=None if gradient is None else gradient.norm,
            level=self._level,
            event="; ".join(self._events) or None,
        )

    def _predict(self, position: Position) -> None:
        """Do a predicted step: w += D/H. It computes no norm and does not wait for the device."""
        assert self._cycle is not None
        if position.index == 1:
            self.stats.begin_jump(self._cycle.planned_norms)
        if self._offload is not None:
            with self.clock.part("offload"):
                self._offload.leave()  # a micro-correction may have loaded the state again
        with self.clock.part("predict"):
            self._cycle.predictor.step()
        self._after_prediction = True
        self._jump_check.predicted += 1

    def _train(self, closure: Closure, position: Position) -> tuple[Gradient, bool]:
        """Do a real step. Returns its gradient and whether it was applied."""
        cycle, applied = self._cycle, False
        self._state_at_hand()
        if cycle is not None:
            with self.clock.part("overhead"):
                cycle.open_window(keep=not self.phases.over)
        self.optimizer.zero_grad(set_to_none=True)  # clear gradients that the user may have left
        self._module_buffers.keep()
        try:
            loss = self._compute(closure)
            with self.clock.part("overhead"):
                gradient = self._measure(loss)
                applied = not self._overflowed(gradient) and self._judge(gradient)
            if applied:
                self._trend.observe(gradient.loss)
                with self.clock.part("optimizer"):
                    clip_gradients(self.weights, gradient, self.clip_norm)
                if cycle is not None:
                    with self.clock.part("overhead"):
                        cycle.observe(self._rate.now, self.phases.steps + 1)
                self._step_optimizer(gradient)
        finally:
            self._module_buffers.settle(applied=applied)
            self.optimizer.zero_grad(set_to_none=True)
        if cycle is not None:
            cycle.steps += applied
        if cycle is not None and position.micro:
            with self.clock.part("overhead"):
                cycle.pause_window()
        return gradient, applied

    def _compute(self, closure: Closure) -> torch.Tensor:
        """Run forward and backward. Returns this rank's loss."""
        return compute_gradients(
            self.model,
            closure,
            accumulate=self.accumulate,
            clock=self.clock,
            scale=(lambda loss: loss) if self._scale is None else self._scale.scale,
            fresh=self.weights.parameters,
        )

    def _step_optimizer(self, gradient: Gradient) -> None:
        """Step the optimizer. After each of the first predictions, also check that it did not undo the prediction."""
        cycle, check = self._cycle, self._jump_check
        judged = cycle is not None and check.due and gradient.along is not None and gradient.along <= 0.0
        before = cycle.agreement.read(self.weights.local()) if cycle is not None and judged else None
        with self.clock.part("optimizer"):
            self.optimizer.step()
        if cycle is not None and before is not None:
            check.observe(cycle.agreement, before, cycle.agreement.read(self.weights.local()), self.optimizer)
        check.predicted = 0

    def _overflowed(self, gradient: Gradient) -> bool:
        """Whether the gradient is not finite only because of the loss scale, which is then lowered.

        The step is skipped. Checks that are due right after a prediction wait for the next real step.
        """
        if self._scale is None or not self._scale.settle(gradient):
            return False
        self._level = Level.NORMAL
        self._note("overflow", "the gradient does not fit in fp16 at this loss scale, which is lowered")
        return True

    def _state_at_hand(self) -> None:
        """Make sure that the optimizer's state is on the device where its step needs it."""
        if self._offload is not None:
            with self.clock.part("offload"):
                self._offload.come_back()

    def _measure(self, loss: torch.Tensor) -> Gradient:
        """Compute loss and norm over all ranks; after a prediction, also check whether the gradient points back."""
        if self._scale is not None:
            self._scale.unscale()
        cycle, along = self._cycle, None
        if cycle is not None and self._after_prediction:
            along = cycle.agreement.along_forecast(self.weights.gradients())
        gradient = measure_gradients(self.weights, loss, along)
        if cycle is not None and gradient.along is not None and gradient.finite:
            if overshot := gradient.along > 0.0:
                self.stats.overshoots += 1
                self._events.append("overshoot")
            cycle.confidence.observe_jump(overshot=overshot)
        return gradient

    def _judge(self, gradient: Gradient) -> bool:
        """Check the run's health before applying the gradient. Returns whether to apply it."""
        after, self._after_prediction = self._after_prediction, False
        assessment = self.monitor.observe_real(gradient.loss, gradient.norm, after_prediction=after)
        self._level = Level.NORMAL
        recovery = self._recover(assessment, finite=gradient.finite)
        return gradient.finite and recovery not in (Recovery.SKIP_BATCH, Recovery.ROLLBACK)

    def _recover(self, assessment: Assessment, *, finite: bool = True) -> Recovery:
        """Carry out the advised recovery if this run may. Returns the recovery carried out."""
        self._found(assessment.level)
        advised, reasons = assessment.recovery, ", ".join(assessment.reasons)
        applied = self._cycle is not None and self._cycle.predictor.applied > 0
        recovery = carried_out(advised, applied=applied, finite=finite, free=not self._only_advise)
        if recovery is not Recovery.CONTINUE:
            self._note(str(recovery), reasons)
        elif advised is not Recovery.CONTINUE:
            self._note(f"advised {advised}", reasons)
        if recovery is Recovery.ABORT:
            raise Diverged(f"step {self.phases.steps + 1}: {reasons}, after every other recovery")
        if not self._only_advise and recovery is not Recovery.CONTINUE:
            self._restrain(recovery)
        return recovery

    def _restrain(self, recovery: Recovery) -> None:
        """Apply a recovery: adjust the next phases, and undo or discard the prediction that caused the problem."""
        self.backoff.observe(recovery)
        self._forced = ends_cycle(recovery)
        cycle = self._cycle
        assert cycle is not None
        if recovery is Recovery.ROLLBACK:
            cycle.withdraw(keep=not self.phases.over)
            self.stats.withdraw_jump()
            self._jump_check.predicted = 0
        elif self._forced and self.phases.position.micro:
            self.stats.resize_jump(cycle.predictor.fraction)
        if recovery is Recovery.RESET_PREDICTOR:
            cycle.forget(keep=not self.phases.over)

    def _found(self, level: Level) -> None:
        self._level = max(self._level, level, key=lambda level: level.rank)
        self._worst = max(self._worst, self._level, key=lambda level: level.rank)

    def _note(self, event: str, reasons: str) -> None:
        self.stats.count_event(event)
        self._events.append(f"{event}: {reasons}")

    def _move_on(self) -> None:
        """Choose the next step. At the end of a window: evaluate it, plan, and decide whether to predict."""
        entry, cycle, position = 0, self._cycle, self.phases.position
        if cycle is not None and not self._forced:
            if self.phases.ends_window:
                self._look_back(cycle)
                entry = 0 if self.phases.over else self._plan(cycle)
            elif cycle.open and self.phases.half_way:
                cycle.agreement.mark_middle(self.weights.local())
        waits = position.phase is Phase.WARMUP or self.phases.over or self.phases.decides
        self.cycle_done = cycle is None or (waits and not position.inside)
        self.phases.advance(entry=entry, fall_back=self._forced)

    def _look_back(self, cycle: Cycle) -> None:
        """Compare the window with its forecast and update the confidence. A recovery may reset both."""
        measured, assessment = cycle.look_back(), None
        if measured is not None:
            jumped = cycle.predictor.applied > 0
            self.stats.add_measured(measured, jumped=jumped)
            if jumped and cycle.predictor.forecasts:
                assessment = self.monitor.observe_prediction(measured.error)
                self._found(assessment.level)
        cycle.confidence.observe_window(measured, self._worst)
        if self._worst is Level.NORMAL:
            self.backoff.relax()
        if assessment is not None:
            self._recover(assessment)
        self._worst = Level.NORMAL

    def _plan(self, cycle: Cycle) -> int:
        """Plan the next displacement. Returns the steps to predict now, or 0.

        It is 0 if the gate is shut, the prediction does not fit into the run, or the displacement is not finite.
        """
        norms = None if self._replay is None else self._replay.norms[self.stats.jumps]
        recorded = self.phases.upcoming_horizon
        horizon = cycle.plan(self._rate, ratio=self.backoff.ratio, horizon=recorded, norms=norms)
        if not horizon:
            self._recover(self.monitor.observe_nonfinite("update"), finite=False)
        if not self.phases.decides:
            return 0
        confidence, threshold = cycle.confidence.value, self.backoff.threshold(self.config.confidence_threshold)
        opens = self._gate.opens(
            confidence=confidence, threshold=threshold, decision=self.stats.decisions, rising=self._trend.rising
        )
        enter = bool(horizon) and opens and not self._forced and self.phases.has_room(horizon)
        self.stats.decisions += 1
        return horizon if enter else 0

    def _new_cycle(self) -> Cycle | None:
        if self.config.predictor.name == "none":
            return None
        return Cycle(self.weights, self.optimizer, self.config, total_steps=self.total_steps, seed=self.seed)

    def _origin(self) -> dict[str, Any]:
        return origin(self.model, self.optimizer, self._rate.scheduler, self._scale and self._scale.scaler)

    def _settings(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with this trainer."""
        names = ("total_steps", "accumulate", "clip_norm", "seed")
        return asdict(self.config) | {name: getattr(self, name) for name in names}

    def _start_over(self) -> None:
        """The optimizer's parameters changed since the last step: discard all that was learnt about the old ones."""
        self._state_at_hand()
        self.weights = Weights(self.optimizer)
        self._cycle = None  # free the old buffers before allocating new ones
        self._cycle = self._new_cycle()
        self._rate.note()
        self.phases.restart()
        self._after_prediction = False
        self._note("parameters changed", "the predictor starts over")

    def statistics(self) -> dict[str, Any]:
        """Plain numbers about the run so far: shares, times, jumps, confidence, events, memory. Not collective."""
        replay, steps = self.replay_record(), self.phases.steps
        phases = dict.fromkeys(map(str, Phase), 0) | replay.phase_steps
        return {
            "steps": steps,
            "real_steps": replay.real_steps,
            "predicted_steps": replay.predicted_steps,
            "backward_reduction": replay.predicted_steps / max(1, steps),
            "phase_steps": phases,
            "phase_shares": {phase: count / max(1, steps) for phase, count in phases.items()},
            "phase_seconds": self.stats.phase_seconds,
            "part_seconds": self.clock.seconds(),
            **self.measures(),
        }

    def measures(self) -> dict[str, Any]:
        """The statistics that come neither from `replay_record` nor from a clock."""
        numbers = self.stats.measures()
        if (cycle := self._cycle) is not None:
            numbers |= {
                "displacement_ratio": cycle.agreement.displacement_ratio,
                "confidence": cycle.confidence.value,
                "bytes_per_parameter": cycle.predictor.bytes_per_parameter,
                "host_bytes_per_parameter": cycle.predictor.host_bytes_per_parameter,
            }
        if self._offload is not None:
            numbers["offload"] = self._offload.state_dict()
        return numbers

    def replay_record(self) -> Replay:
        """The decisions so far, for a control run that repeats them."""
        return Replay(phases=self.phases.letters, norms=tuple(self.stats.norms))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, except weights and global random state. Tensors are not copied."""
        return {
            "settings": self._settings(),
            "origin": self._origin(),
            "parts": {name: part.state_dict() for name, part in self._parts().items()},
            "clock": self.clock.seconds(),
            "flags": [self._after_prediction, self.cycle_done],
            "levels": [str(self._worst), str(self._level)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state_dict`. Load the model's weights first.

        Raises:
            CheckpointError: if the state was made with other settings, or for another model, optimizer, schedule or
                scaler. The trainer is then unchanged.
        """
        if not {"settings", "origin", "parts"} <= state.keys():
            raise CheckpointError("the state is not one that HybridTrainer.state_dict of this version made")
        check_same_settings(self._settings(), state["settings"])
        check_same_origin(self._origin(), state["origin"])
        self._state_at_hand()
        for name, part in self._parts().items():
            part.load_state_dict(state["parts"][name])
        self.clock.load(state["clock"])
        self._after_prediction, self.cycle_done = state["flags"]
        self._worst, self._level = map(Level, state["levels"])

    def _parts(self) -> dict[str, Any]:
        """The components that have a state."""
        parts = {"optimizer": self.optimizer, "rate": self._rate, "phases": self.phases, "stats": self.stats}
        parts |= {"monitor": self.monitor, "backoff": self.backoff, "trend": self._trend}
        parts |= {} if self._cycle is None else {"cycle": self._cycle, "jump_check": self._jump_check}
        parts |= {} if self._scale is None else {"scale": self._scale}
        return parts if self._offload is None else parts | {"offload": self._offload}
