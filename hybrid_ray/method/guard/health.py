"""Judges real steps and windows of a run, and carries out the recovery that the divergence monitor advises."""

import math
from typing import Any

from hybrid_ray.config import HybridConfig
from hybrid_ray.errors import Diverged
from hybrid_ray.method.cycle import Cycle
from hybrid_ray.method.gate.agreement import Agreement
from hybrid_ray.method.gate.payback import FinishedCycle
from hybrid_ray.method.gradients import Gradient
from hybrid_ray.method.guard.divergence import Assessment, DivergenceMonitor, Level, Recovery
from hybrid_ray.method.guard.jump_check import JumpCheck
from hybrid_ray.method.guard.recovery import Backoff, carried_out, ends_cycle
from hybrid_ray.method.phases import PhaseMachine
from hybrid_ray.method.trainer_stats import TrainerStats

__all__ = ["Health"]


class Health:
    """The run's divergence level, its recoveries and the events of the current step.

    All numbers that it judges are all-reduced, so every rank comes to the same recovery.

    Args:
        config: the settings of the method.
        phases: where the run is.
        stats: counts events, overshoots and withdrawn jumps.
        only_advise: whether the run does not decide its own predictions (it follows a recording, or predicts nothing).
            Most recoveries are then only reported, but a bad batch is skipped in every run.
    """

    def __init__(self, config: HybridConfig, phases: PhaseMachine, stats: TrainerStats, *, only_advise: bool) -> None:
        self.monitor = DivergenceMonitor(config.divergence_sigma)
        self.backoff = Backoff(gated=config.gate_kind == "confidence")
        self.jump_check = JumpCheck()
        self.level = Level.NORMAL  # of the last real step
        self.events: list[str] = []  # of the current step
        self.forced = False  # whether the next phase must be FULL
        self.after_prediction = False  # whether a prediction was made since the last real step
        self._worst = Level.NORMAL  # since the last window ended
        self._phases = phases
        self._stats = stats
        self._only_advise = only_advise

    def begin_step(self) -> None:
        self.events, self.forced = [], False

    def predicted(self) -> None:
        """Called after every predicted step."""
        self.after_prediction = True
        self.jump_check.predicted += 1

    def judge(self, gradient: Gradient, cycle: Cycle | None, *, overflowed: bool) -> bool:
        """Check the run's health before applying the gradient. Returns whether to apply it.

        Args:
            overflowed: the gradient is not finite only because of the loss scale. The step is then skipped, and checks
                that are due right after a prediction wait for the next real step.
        """
        if overflowed:
            self.level = Level.NORMAL
            self.note("overflow", "the gradient does not fit in fp16 at this loss scale, which is lowered")
            return False
        along = gradient.along if gradient.finite else None
        if cycle is not None and along is not None and cycle.observe_jump(along):
            self._stats.overshoots += 1
            self.events.append("overshoot")
        after, self.after_prediction = self.after_prediction, False
        assessment = self.monitor.observe_real(gradient.loss, gradient.norm, after_prediction=after)
        self.level = Level.NORMAL
        recovery = self._recover(assessment, cycle, loss=gradient.loss, finite=gradient.finite)
        return gradient.finite and recovery not in (Recovery.SKIP_BATCH, Recovery.ROLLBACK)

    def judge_window(self, measured: Agreement | None, cycle: Cycle, *, looked: float) -> FinishedCycle | None:
        """Judge a finished window by its forecast's error, and learn from its cycle. A recovery may discard that.

        Args:
            looked: held-out loss after the cycle; NaN: not measured.
        """
        assessment = None
        if measured is not None and cycle.predictor.applied > 0 and cycle.predictor.forecasts:
            assessment = self.monitor.observe_prediction(measured.error)
            self._found(assessment.level)
        finished = cycle.learn(measured, self._worst, looked=looked)
        if self._worst is Level.NORMAL:
            self.backoff.relax()
        if assessment is not None:
            self._recover(assessment, cycle)
        self._worst = Level.NORMAL
        return finished

    def refuse_plan(self, cycle: Cycle) -> None:
        """Handle a planned displacement that is not finite."""
        self._recover(self.monitor.observe_nonfinite("update"), cycle, finite=False)

    def _recover(
        self, assessment: Assessment, cycle: Cycle | None, *, loss: float = math.nan, finite: bool = True
    ) -> Recovery:
        """Carry out the advised recovery if this run may. Returns the recovery carried out."""
        self._found(assessment.level)
        advised, reasons = assessment.recovery, ", ".join(assessment.reasons)
        applied = cycle is not None and cycle.predictor.applied > 0
        recovery = carried_out(advised, applied=applied, finite=finite, free=not self._only_advise)
        if recovery is not Recovery.CONTINUE:
            self.note(str(recovery), reasons)
        elif advised is not Recovery.CONTINUE:
            self.note(f"advised {advised}", reasons)
        if recovery is Recovery.ABORT:
            plain = "though this run predicts nothing: look at the data, the loss and the learning rate"
            why = plain if self._only_advise else "after every other recovery"
            raise Diverged(f"step {self._phases.steps + 1}: {reasons}, {why}")
        if not self._only_advise and recovery is not Recovery.CONTINUE:
            assert cycle is not None
            self._restrain(recovery, cycle, loss)
        return recovery

    def _restrain(self, recovery: Recovery, cycle: Cycle, loss: float) -> None:
        """Apply a recovery: adjust the next phases, and undo or discard the prediction that caused the problem."""
        self.backoff.observe(recovery)
        self.forced = ends_cycle(recovery)
        if recovery is Recovery.ROLLBACK:
            self._stats.withdraw_jump(cycle.withdraw(keep=not self._phases.over, loss=loss))
            self.jump_check.predicted = 0
        elif self.forced and self._phases.position.micro:
            self._stats.resize_jump(cycle.predictor.fraction)
        if recovery is Recovery.RESET_PREDICTOR:
            finished = cycle.forget(keep=not self._phases.over, loss=loss)
            if finished is not None:
                self._stats.add_cycle(finished)

    def note(self, event: str, reasons: str) -> None:
        """Record an event of the current step."""
        self._stats.count_event(event)
        self.events.append(f"{event}: {reasons}")

    def _found(self, level: Level) -> None:
        self.level = max(self.level, level, key=lambda level: level.rank)
        self._worst = max(self._worst, self.level, key=lambda level: level.rank)

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor.state_dict(),
            "backoff": self.backoff.state_dict(),
            "jump_check": self.jump_check.state_dict(),
            "after_prediction": self.after_prediction,
            "levels": [str(self._worst), str(self.level)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state["monitor"])
        self.backoff.load_state_dict(state["backoff"])
        self.jump_check.load_state_dict(state["jump_check"])
        self.after_prediction = state["after_prediction"]
        self._worst, self.level = map(Level, state["levels"])
