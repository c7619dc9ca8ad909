"""The hybrid trainer: it does one nominal step per call, real or predicted."""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import CheckpointError
from hybrid_ray.method.checks import check_arguments, check_same_origin, check_same_settings, origin
from hybrid_ray.method.cycle import Cycle
from hybrid_ray.method.gate.decision import Gate
from hybrid_ray.method.gate.look import Decide, Look
from hybrid_ray.method.gate.loss_trend import LossTrend
from hybrid_ray.method.gradients import Closure, Gradient
from hybrid_ray.method.guard.health import Health
from hybrid_ray.method.learning_rate import LearningRate
from hybrid_ray.method.phases import Phase, PhaseMachine, Position
from hybrid_ray.method.real_step import RealStep
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
        decide: computes the mean loss of a held-out batch, for ``look_every``. It is called with a number, in
            evaluation mode and without gradients; the same number must give the same batch.
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
        decide: Decide | None = None,
        replay: Replay | None = None,
    ) -> None:
        config = HybridConfig() if config is None else config
        check_arguments(
            model, optimizer, config, replay, total_steps=total_steps, accumulate=accumulate, clip_norm=clip_norm
        )
        self.model, self.optimizer, self.config = model, optimizer, config
        self.total_steps, self.accumulate, self.clip_norm, self.seed = total_steps, accumulate, clip_norm, seed
        self.weights = Weights(optimizer, model)
        self.clock = StepClock(self.weights.device)
        self.phases = PhaseMachine(config, None if replay is None else replay.phases, total_steps=total_steps)
        self.stats = TrainerStats(self.weights.device)
        only_advise = replay is not None or config.predictor.name == "none"
        self.health = Health(config, self.phases, self.stats, only_advise=only_advise)
        self.cycle_done = True
        self._gate = Gate(config, seed=seed)
        self._trend = LossTrend()
        self._look = Look(model, decide, every=config.look_every if config.predictor.name != "none" else 0)
        self._rate = LearningRate(optimizer, lr_scheduler)
        self._replay = replay
        self._cycle = self._new_cycle()
        self._offload = StateOffload(optimizer, self.weights.device) if config.offload_optimizer else None
        self._real_step = RealStep(model, optimizer, accumulate=accumulate, clip_norm=clip_norm, scaler=scaler)

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
        self.health.begin_step()
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
            confidence=None if self._cycle is None else self._cycle.confidence,
            grad_norm=None if gradient is None else gradient.norm,
            level=self.health.level,
            event="; ".join(self.health.events) or None,
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
        self.health.predicted()

    def _train(self, closure: Closure, position: Position) -> tuple[Gradient, bool]:
        """Do a real step. Returns its gradient and whether it was applied."""
        cycle = self._cycle
        self._state_at_hand()
        if cycle is not None:
            with self.clock.part("overhead"):
                cycle.open_window(keep=not self.phases.over)
        gradient, applied = self._real_step.run(
            closure,
            self.weights,
            self.clock,
            cycle=cycle,
            check=self.health.jump_check,
            after_prediction=self.health.after_prediction,
            judge=lambda gradient, overflowed: self.health.judge(gradient, cycle, overflowed=overflowed),
            observe=self._observe,
        )
        if cycle is not None:
            cycle.steps += applied
            if position.micro:
                with self.clock.part("overhead"):
                    cycle.pause_window()
        return gradient, applied

    def _observe(self, gradient: Gradient) -> None:
        """Learn from a gradient that is about to be applied."""
        self._trend.observe(gradient.loss)
        if self._cycle is not None:
            self._cycle.observe(gradient, self._rate, self.phases.steps + 1)

    def _state_at_hand(self) -> None:
        """Make sure that the optimizer's state is on the device where its step needs it."""
        if self._offload is not None:
            with self.clock.part("offload"):
                self._offload.come_back()

    def _move_on(self) -> None:
        """Choose the next step. At the end of a window: evaluate it, plan, and decide whether to predict."""
        entry, cycle, position = 0, self._cycle, self.phases.position
        if cycle is not None and not self.health.forced:
            if self.phases.ends_window:
                self._end_cycle(cycle)
                entry = 0 if self.phases.over else self._begin_cycle(cycle)
            elif cycle.open and self.phases.half_way:
                cycle.agreement.mark_middle(self.weights.local())
        waits = position.phase is Phase.WARMUP or self.phases.over or self.phases.decides
        self.cycle_done = cycle is None or (waits and not position.inside)
        self.phases.advance(entry=entry, fall_back=self.health.forced)

    def _end_cycle(self, cycle: Cycle) -> None:
        """Compare the window with its forecast and learn from the cycle. A recovery may reset what was learnt."""
        measured = cycle.look_back()
        if measured is not None:
            self.stats.add_measured(measured, jumped=cycle.predictor.applied > 0)
        looked = self._look.after_cycle() if cycle.payback.looked else math.nan
        finished = self.health.judge_window(measured, cycle, looked=looked)
        if finished is not None:
            self.stats.add_cycle(finished)

    def _begin_cycle(self, cycle: Cycle) -> int:
        """Decide whether to predict and plan the next displacement. Returns the steps to predict now, or 0.

        It is 0 if the gate is shut, the prediction does not fit into the run, or the displacement is not finite. A
        displacement is then planned too, to be compared with the next window.
        """
        cycle.begin(self.phases.steps + 1, looked=self._look.before_cycle())
        share = self._choose(cycle) if self.phases.decides else 0.0
        norms = None if self._replay is None else self._replay.norms[self.stats.jumps]
        recorded, ratio = self.phases.upcoming_horizon, self.health.backoff.ratio
        horizon = cycle.plan(self._rate, ratio=ratio, share=share or 1.0, horizon=recorded, norms=norms)
        if not horizon:
            self.health.refuse_plan(cycle)
        may = bool(horizon) and not self.health.forced
        if may and (share > 0.0 and self.phases.has_room(horizon) if self._replay is None else recorded is not None):
            cycle.payback.jumps(cycle.share, predicted=horizon)
            return horizon
        return 0

    def _choose(self, cycle: Cycle) -> float:
        """The gate's decision: a share of the full jump."""
        threshold = self.health.backoff.threshold(self.config.confidence_threshold)
        decision, self.stats.decisions = self.stats.decisions, self.stats.decisions + 1
        return self._gate.choose(cycle.payback, threshold=threshold, decision=decision, rising=self._trend.rising)

    def _new_cycle(self) -> Cycle | None:
        if self.config.predictor.name == "none":
            return None
        return Cycle(self.weights, self.optimizer, self.config, total_steps=self.total_steps, seed=self.seed)

    def _origin(self) -> dict[str, Any]:
        scale = self._real_step.scale
        return origin(self.model, self.optimizer, self._rate.scheduler, scale and scale.scaler)

    def _settings(self) -> dict[str, Any]:
        """The settings that a checkpoint must share with this trainer."""
        names = ("total_steps", "accumulate", "clip_norm", "seed")
        return asdict(self.config) | {name: getattr(self, name) for name in names}

    def _start_over(self) -> None:
        """The optimizer's parameters changed since the last step: discard all that was learnt about the old ones."""
        self._state_at_hand()
        self.weights = Weights(self.optimizer, self.model)
        self._cycle = None  # free the old buffers before allocating new ones
        self._cycle = self._new_cycle()
        self._rate.note()
        self.phases.restart()
        self.health.after_prediction = False
        self.health.note("parameters changed", "the predictor starts over")

    def statistics(self) -> dict[str, Any]:
        """Plain numbers about the run so far: shares, times, jumps, confidence, events, memory. Not collective."""
        return self.stats.shares(self.replay_record(), self.clock.seconds()) | self.measures()

    def measures(self) -> dict[str, Any]:
        """The statistics that come neither from `replay_record` nor from a clock."""
        numbers = self.stats.measures()
        if (cycle := self._cycle) is not None:
            numbers |= {
                "displacement_ratio": cycle.agreement.displacement_ratio,
                "confidence": cycle.confidence,
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
            "cycle_done": self.cycle_done,
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
        self.cycle_done = state["cycle_done"]

    def sample_anew(self) -> None:
        """Forget the sampled coordinates, after a state from other shards of the model: this rank samples others."""
        if self._cycle is not None:
            self._cycle.agreement.restart(self.weights.local())

    def _parts(self) -> dict[str, Any]:
        """The components that have a state."""
        parts = {"optimizer": self.optimizer, "rate": self._rate, "phases": self.phases, "stats": self.stats}
        parts |= {"health": self.health, "trend": self._trend, **self._real_step.parts()}
        parts |= {} if self._cycle is None else {"cycle": self._cycle, "look": self._look}
        return parts if self._offload is None else parts | {"offload": self._offload}
