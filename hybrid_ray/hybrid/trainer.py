"""The hybrid trainer: one nominal step at a time, real or predicted."""

from dataclasses import asdict, dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError, ConfigError, Diverged, UnsupportedOptimizer
from hybrid_ray.hybrid.clock import StepClock
from hybrid_ray.hybrid.cycle import Cycle
from hybrid_ray.hybrid.divergence import Assessment, DivergenceMonitor, Level, Recovery
from hybrid_ray.hybrid.gradients import Closure, Gradient, clip_gradients, compute_gradients, measure_gradients
from hybrid_ray.hybrid.learning_rate import LearningRate
from hybrid_ray.hybrid.phases import Phase, PhaseMachine, Position
from hybrid_ray.hybrid.recovery import Restraint, ends_cycle
from hybrid_ray.hybrid.tally import Tally
from hybrid_ray.hybrid.weights import Weights
from hybrid_ray.records import Replay

__all__ = ["HybridTrainer", "StepResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one nominal step was."""

    phase: Phase
    predicted: bool
    loss: float | None  # mean over micro-batches and ranks, at the weights before the update; None if predicted
    confidence: float  # after this step
    grad_norm: float | None  # over all ranks, before clipping; None if predicted
    level: Level
    event: str | None  # a recovery and its reasons, an overshoot, changed parameters


class HybridTrainer:
    """Train with some gradient steps replaced by predicted ones (docs/method.md, section 1).

    ``step(closure)`` does one nominal step. A real step calls ``closure``, which returns the loss of the next
    micro-batch, ``config.accumulate`` times, with backward after each; then it clips and steps the optimizer. A
    predicted step never calls it: the weights move in place, and no batch is consumed. The trainer zeroes gradients and
    steps the schedule.

    With several ranks every number that decides is all-reduced first, so all ranks do the same. `step` and
    `load_state_dict` must then be called by all of them.

    Args:
        model: any module; DDP and FSDP2 models are told not to reduce gradients before the last micro-batch.
        optimizer: any ``torch.optim`` optimizer that can step without a closure. Its groups say what is predicted.
        config: the settings; ``predictor="off"`` is a plain training loop with a check for finite numbers.
        lr_scheduler: stepped once a nominal step.
        replay: follow a recorded run's phases (and, in controls, its displacement norms) instead of confidence.
            Recoveries are then only told, not carried out, except that what is not finite is never applied.

    Raises:
        ConfigError: for settings or parameters that can't work, all problems at once.
        UnsupportedOptimizer: for an optimizer that needs a closure of its own (LBFGS).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: HybridConfig | None = None,
        *,
        lr_scheduler: LRScheduler | None = None,
        replay: Replay | None = None,
    ) -> None:
        config = HybridConfig() if config is None else config
        _check(optimizer, config, replay)
        self.model, self.optimizer, self.config = model, optimizer, config
        self.weights = Weights(optimizer)
        self.clock = StepClock(self.weights.device)
        self.phases = PhaseMachine(config, None if replay is None else replay.phases)
        self.monitor = DivergenceMonitor(config.divergence_sigma)
        self.restraint = Restraint()
        self.tally = Tally(self.weights.device)
        self.cycle_done = True
        self._rate = LearningRate(optimizer, lr_scheduler)
        self._replay = replay
        self._cycle = self._new_cycle()
        self._after_prediction = False
        self._worst = Level.NORMAL  # since the last look back
        self._level = Level.NORMAL
        self._events: list[str] = []  # of the step under way
        self._forced = False  # FULL is next

    def step(self, closure: Closure) -> StepResult:
        """One nominal step.

        Raises:
            Diverged: if numbers that are not finite, or a run-away loss, came back after every recovery.
            ConfigError: if the closure's loss is not a scalar with a gradient.
        """
        self._events, self._forced = [], False
        if self.weights.changed:
            self._start_over()
        position = self.phases.position
        gradient, applied = None, True
        with self.tally.step(position):
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
        """A predicted step: w += D/H. Nothing else: no norm, no wait for the device."""
        assert self._cycle is not None
        if position.index == 1:
            self.tally.begin_jump(self._cycle.planned_norms)
        with self.clock.part("predict"):
            self._cycle.predictor.step()
        self._after_prediction = True

    def _train(self, closure: Closure, position: Position) -> tuple[Gradient, bool]:
        """A real step. Returns what its gradient was and whether it was applied."""
        cycle = self._cycle
        if cycle is not None:
            with self.clock.part("overhead"):
                cycle.open_window(keep=not self._over)
        try:
            loss = compute_gradients(self.model, closure, accumulate=self.config.accumulate, clock=self.clock)
            with self.clock.part("overhead"):
                gradient = self._measure(loss)
                applied = self._judge(gradient)
            with self.clock.part("optimizer"):
                if applied:
                    clip_gradients(self.weights, gradient, self.config.clip_norm)
                    self.optimizer.step()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        if cycle is not None:
            cycle.steps += applied
            if position.micro:
                cycle.pause_window()
        return gradient, applied

    def _measure(self, loss: torch.Tensor) -> Gradient:
        """Loss and norm over all ranks; right after a prediction also whether the gradient points back along it."""
        cycle, along = self._cycle, None
        if cycle is not None and self._after_prediction:
            along = cycle.measures.along_forecast(self.weights.gradients())
        gradient = measure_gradients(self.weights, loss, along)
        if cycle is not None and gradient.along is not None and gradient.finite and cycle.observe_jump(gradient.along):
            self.tally.misses += 1
            self._events.append("overshoot")
        return gradient

    def _judge(self, gradient: Gradient) -> bool:
        """Before anything is applied: is the run healthy? Returns whether to apply the gradient."""
        after, self._after_prediction = self._after_prediction, False
        assessment = self.monitor.observe_real(gradient.loss, gradient.norm, after_prediction=after)
        self._level = assessment.level
        recovery = self._recover(assessment)
        return gradient.finite and recovery not in (Recovery.SKIP_BATCH, Recovery.ROLLBACK)

    def _recover(self, assessment: Assessment) -> Recovery:
        """Carry a recovery out. Returns the one that was."""
        recovery, cycle = assessment.recovery, self._cycle
        self._worst = max(self._worst, assessment.level, key=lambda level: level.rank)
        if recovery is Recovery.CONTINUE:
            return recovery
        told = f"{recovery}: {', '.join(assessment.reasons)}"
        self.tally.count_event(recovery)
        self._events.append(told)
        if recovery is Recovery.ABORT:
            raise Diverged(f"step {self.phases.steps + 1}: {', '.join(assessment.reasons)}, after every other recovery")
        if self._replay is not None:
            return Recovery.CONTINUE
        self.restraint.observe(recovery)
        self._forced = ends_cycle(recovery)
        if cycle is None:
            return recovery
        if recovery is Recovery.ROLLBACK:
            cycle.withdraw(keep=not self._over)
            self.tally.resize_jump(0.0)
        elif self._forced and self.phases.position.micro:
            self.tally.resize_jump(cycle.predictor.fraction)
        if recovery is Recovery.RESET_PREDICTOR:
            cycle.forget(keep=not self._over)
        return recovery

    def _move_on(self) -> None:
        """What comes next? At the end of a window: look back, plan, and decide whether to predict."""
        entry, cycle, position = 0, self._cycle, self.phases.position
        if cycle is not None and not self._forced:
            if self.phases.ends_window:
                self._look_back(cycle)
                entry = 0 if self._over else self._plan(cycle)
            elif cycle.open and position.index == self._stretch(position) // 2:
                cycle.measures.mark_middle(self.weights.local())
        self.cycle_done = cycle is None or self._over or position.phase is Phase.WARMUP or self.phases.decides
        self.phases.advance(entry=entry, fall_back=self._forced)

    def _look_back(self, cycle: Cycle) -> None:
        """Compare what the window did with what had been foreseen; confidence follows."""
        measured = cycle.look_back()
        jumped = cycle.predictor.applied > 0
        if measured is not None:
            self.tally.add_measured(measured, jumped=jumped)
            if jumped:
                self._recover(self.monitor.observe_prediction(measured.error))
        cycle.observe_window(measured, self._worst)
        if self._worst is Level.NORMAL:
            self.restraint.relax()
        self._worst = Level.NORMAL

    def _plan(self, cycle: Cycle) -> int:
        """Fix the next displacement. Returns the steps to predict now; 0: not confident, no room, or not finite."""
        replay = self._replay
        recorded = self.phases.upcoming_horizon
        norms = None
        if replay is not None:
            norms = (
                replay.norms[self.tally.jumps] if self.tally.jumps < len(replay.norms) else [0.0] * self.weights.groups
            )
        horizon = cycle.plan(self._rate, ratio=self.restraint.ratio, horizon=recorded, norms=norms)
        if not horizon:
            self._level = Level.WARNING
            self._recover(self.monitor.observe_nonfinite("update"))
        if not self.phases.decides:
            return 0
        confident = cycle.confidence.value >= self.restraint.threshold(self.config.confidence_threshold)
        enter = bool(horizon) and confident and not self._forced and self._has_room(horizon)
        self.tally.decisions += 1
        return horizon if enter else 0

    def _has_room(self, horizon: int) -> bool:
        """Whether a whole cycle fits into what is left of the run."""
        config = self.config
        if config.total_steps is None:
            return True
        micro = (horizon - 1) // config.correction_interval if config.correction_interval else 0
        return self.phases.steps + 1 + horizon + micro + config.correct_steps <= config.total_steps

    @property
    def _over(self) -> bool:
        """Whether no prediction will be entered any more."""
        if self._replay is not None:
            return "P" not in self._replay.phases[self.phases.steps :]
        total = self.config.total_steps
        return total is not None and self.phases.steps + 1 >= total * (1.0 - self.config.off_fraction)

    def _stretch(self, position: Position) -> int:
        """Real steps of the window that ``position`` is in, if all goes well."""
        return self.config.correct_steps if position.phase is Phase.CORRECT else self.config.full_steps

    def _new_cycle(self) -> Cycle | None:
        return None if self.config.predictor == "off" else Cycle(self.weights, self.optimizer, self.config)

    def _start_over(self) -> None:
        """The optimizer's parameters are not those of the last step: forget what was learnt about them."""
        self.weights = Weights(self.optimizer)
        self._cycle = None  # free its buffers before new ones are made
        self._cycle = self._new_cycle()
        self.phases.restart()
        self._after_prediction = False
        self._events.append("parameters changed: predictor starts over")
        self.tally.count_event("parameters_changed")

    def statistics(self) -> dict[str, Any]:
        """Plain numbers about the run so far: shares, times, jumps, confidence, events, memory. No rank waits."""
        cycle = self._cycle
        numbers = self.tally.statistics() | {"part_seconds": self.clock.seconds()}
        if cycle is not None:
            numbers |= {
                "displacement_ratio": cycle.measures.displacement_ratio,
                "confidence": cycle.confidence.value,
                "bytes_per_parameter": cycle.predictor.bytes_per_parameter,
                "host_bytes_per_parameter": cycle.predictor.host_bytes_per_parameter,
            }
        return numbers

    def replay_record(self) -> Replay:
        """The decisions so far, for a control that repeats them."""
        return Replay(phases=self.tally.letters, norms=tuple(self.tally.norms))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on except the weights and global random state; tensors are not copied."""
        return {
            "config": asdict(self.config),
            "optimizer": self.optimizer.state_dict(),
            "rate": self._rate.state_dict(),
            "phases": self.phases.state_dict(),
            "monitor": self.monitor.state_dict(),
            "restraint": self.restraint.state_dict(),
            "tally": self.tally.state_dict(),
            "clock": self.clock.seconds(),
            "cycle": None if self._cycle is None else self._cycle.state_dict(),
            "flags": [self._after_prediction, self.cycle_done],
            "levels": [str(self._worst), str(self._level)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` stopped. Load the model's weights first.

        Raises:
            CheckpointError: if the state was made by other settings.
        """
        mine = asdict(self.config)
        other = {name for name in mine | state["config"] if mine.get(name) != state["config"].get(name)}
        if other:
            raise CheckpointError(f"the checkpoint was made with other settings: {', '.join(sorted(other))}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.weights = Weights(self.optimizer)
        self._rate.load_state_dict(state["rate"])
        self.phases.load_state_dict(state["phases"])
        self.monitor.load_state_dict(state["monitor"])
        self.restraint.load_state_dict(state["restraint"])
        self.tally.load_state_dict(state["tally"])
        self.clock.load(state["clock"])
        if self._cycle is not None:
            self._cycle.load_state_dict(state["cycle"])
        self._after_prediction, self.cycle_done = state["flags"]
        self._worst, self._level = map(Level, state["levels"])


def _check(optimizer: torch.optim.Optimizer, config: HybridConfig, replay: Replay | None) -> None:
    problems = list(config.problems())
    if config.predictor in ("random", "reversed") and replay is None:
        problems.append(f"predictor is {config.predictor!r}, a control: give it the replay of a hybrid run")
    if problems:
        raise ConfigError(problems)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UnsupportedOptimizer(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
    needed = signature(type(optimizer).step).parameters.get("closure")
    if needed is not None and needed.default is Parameter.empty:
        name = type(optimizer).__name__
        raise UnsupportedOptimizer(f"{name} needs a closure of its own: use a first-order optimizer such as AdamW")
