"""A run in progress: evaluation, checkpoints and reports between the steps, and the result at the end."""

import logging
import math
from pathlib import Path
from typing import Any

import torch

from hybrid_ray.config import Split
from hybrid_ray.errors import Diverged
from hybrid_ray.method.ranks import from_first_rank, rank, sum_over_ranks, world_size
from hybrid_ray.optim.schedule_free import evaluation_weights
from hybrid_ray.run_result import Evaluation, Heldout, RunResult, Status, StepRecord
from hybrid_ray.training.checkpoint import state as resume
from hybrid_ray.training.costs import RunCosts
from hybrid_ray.training.generated_text import sample
from hybrid_ray.training.hardware.fingerprint import fingerprint
from hybrid_ray.training.hardware.placement import check_placement
from hybrid_ray.training.heldout import heldout_loss
from hybrid_ray.training.reporter import Reporter, Reporters, RunWriter
from hybrid_ray.training.setup import Training, TrainSetup
from hybrid_ray.training.telemetry.monitor import Monitor, device_name, energy_of_all

__all__ = ["TrainingRun"]

log = logging.getLogger("hybrid_ray")

_GRAVEST_FIRST: tuple[Status, ...] = ("diverged", "failed", "stopped", "finished")


class TrainingRun:
    """A run, at its start or at its last checkpoint if the run directory has one.

    Args:
        directory: the run directory; None writes nothing.

    Raises:
        CheckpointError: the directory has checkpoints, but none is usable.
    """

    def __init__(
        self,
        setup: TrainSetup,
        training: Training,
        costs: RunCosts,
        reporter: Reporter,
        directory: Path | None,
    ) -> None:
        self.setup = setup
        self.training = training
        self.costs = costs
        self._directory = directory
        self._heldout: dict[str, Heldout] = {}
        self._sample: str | None = None
        resumed = directory is not None and resume.restore(directory, setup, training, costs)
        self._writer = RunWriter(directory, setup.run, resumed=resumed) if directory and rank() == 0 else None
        self._reporter = Reporters(self._writer, reporter) if self._writer else reporter
        if setup.setting() not in costs.settings:
            costs.settings.append(setup.setting())
        if resumed:
            log.info("resuming at step %d", self.step)

    @property
    def step(self) -> int:
        """Nominal steps done."""
        return self.training.trainer.phases.steps

    @property
    def ended(self) -> bool:
        return self.step >= self.setup.run.train.steps

    def report_step(self, record: StepRecord) -> None:
        """Pass a finished step to the reporters."""
        self._reporter.step(record)

    def evaluation_due(self) -> bool:
        """Whether to evaluate now: at the first end of a cycle at or after the next point, and at the end of the run.

        The weights are best at the end of a cycle, right after Correct; within Predict they are only predicted.
        """
        curve, step = self.costs.curve, self.step
        last = curve[-1].step if curve else 0
        passed = any(last < point <= step for point in self.setup.run.train.evaluation_steps)
        return passed and (self.training.trainer.cycle_done or self.ended)

    def evaluate_and_report(self) -> Status | None:
        """Evaluate, checkpoint, report, in this order, so that nothing reported is lost (collective).

        Returns the status that ends the run, the same on all ranks, or None to continue.

        Raises:
            Diverged: the held-out loss is not finite.
            ConfigError: some weights are no longer on the device of the run.
        """
        costs = self.costs
        check_placement(self.setup.module, self.setup.device)
        loss = self._evaluate("val")
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss is {loss} at nominal step {self.step}")
        seconds, step_seconds = from_first_rank([costs.train_seconds, self._step_seconds()])
        replay = self.training.trainer.replay_record()
        evaluation = Evaluation(
            step=self.step,
            loss=loss,
            real_steps=replay.real_steps,
            train_seconds=seconds,
            time=seconds / step_seconds,
        )
        costs.curve.append(evaluation)
        log.info("step %d: held-out loss %.4f after %.1f s of training", evaluation.step, loss, seconds)
        if self.setup.run.train.checkpoint_every:
            self.checkpoint()
        return _agreed(self._reporter.evaluation(evaluation, step_seconds, replay))

    def checkpoint_due(self) -> bool:
        every = self.setup.run.train.checkpoint_every
        return every > 0 and self.step % every == 0

    def checkpoint(self) -> None:
        """Checkpoint the run's whole state (collective). At the end of a run, earlier checkpoints are removed."""
        if self._directory is not None:
            with self.costs.other("checkpoint"):
                resume.save(self._directory, self.setup, self.training, self.costs, keep=1 if self.ended else 2)

    def flush(self) -> None:
        """Write all steps so far to the run directory."""
        if self._writer:
            self._writer.flush()

    def close(self, status: Status, error: str | None, monitor: Monitor) -> RunResult:
        """Make the result and write it to the run directory (collective). Only a finished run uses the test split."""
        if status == "finished":
            if "val" not in self._heldout:  # resumed from a checkpoint of its last step
                self._evaluate("val")
            self._evaluate("test")
            with self.costs.other("sample"), evaluation_weights(self.training.optimizer):
                self._sample = sample(self.setup)
        self.setup.compiled.say_recompilations()
        result = self._result(status, error, monitor)
        if self._writer:
            self._writer.close(result)
        return result

    def _evaluate(self, split: Split) -> float:
        setup = self.setup
        with self.costs.other("evaluation"), evaluation_weights(self.training.optimizer):
            self._heldout[split] = heldout_loss(
                setup.module,
                setup.task,
                split,
                device=setup.device,
                precision=setup.precision,
                share=not setup.sharded,
            )
        return self._heldout[split].loss

    def _step_seconds(self) -> float:
        trainer = self.training.trainer
        return self.costs.step_seconds(trainer.clock.seconds(), trainer.replay_record().real_steps)

    def _result(self, status: Status, error: str | None, monitor: Monitor) -> RunResult:
        setup, costs, trainer = self.setup, self.costs, self.training.trainer
        step_seconds, *seconds = from_first_rank([self._step_seconds(), *costs.phase_seconds.values()])
        return RunResult(
            arm=setup.run.arm,
            seed=setup.run.seed,
            status=status,
            step_seconds=step_seconds,
            real_step_cost=costs.of_steps.real_step,
            optimizer_cost=costs.of_steps.optimizer,
            heldout=self._heldout if status == "finished" else {},
            curve=tuple(costs.curve),
            phase_seconds=dict(zip(costs.phase_seconds, seconds, strict=True)),
            part_seconds=trainer.clock.seconds(),
            other_seconds=dict(costs.other_seconds),
            tokens=dict(costs.tokens),
            replay=trainer.replay_record(),
            statistics={**trainer.measures(), **costs.extremes.training},
            fingerprint=fingerprint(setup.run, setup.task, setup.device, setting=costs.setting(setup.setting())),
            machine={**_watched(monitor, setup.device), **costs.extremes.memory, **setup.evidence()},
            sample=self._sample,
            error=error,
        )


def _watched(monitor: Monitor, device: torch.device) -> dict[str, Any]:
    """The measurements of this rank's monitor, and the energy of all ranks' devices (collective)."""
    found = monitor.summary()
    joules = energy_of_all(found.get("gpu_energy_joules", 0.0), device_name(device))
    return {**found, "gpu_energy_of_all_workers_joules": joules} if joules and world_size() > 1 else found


def _agreed(status: Status | None) -> Status | None:
    """The same status for all ranks: the most severe that any of them has."""
    if world_size() == 1:
        return status
    votes = sum_over_ranks([float(status == name) for name in _GRAVEST_FIRST])
    return next((name for name, count in zip(_GRAVEST_FIRST, votes, strict=True) if count), None)
