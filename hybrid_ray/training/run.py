"""One run under way: what happens between steps - evaluate, checkpoint, report - and what is left at the end."""

import logging
import math
from pathlib import Path
from typing import Any

import torch

from hybrid_ray.config import Split, TrainConfig
from hybrid_ray.errors import Diverged
from hybrid_ray.run_result import Evaluation, Heldout, RunResult, Status, StepRecord
from hybrid_ray.training.checkpoint import state as resume
from hybrid_ray.training.costs import Accounts
from hybrid_ray.training.distributed import from_first_rank, rank, sum_over_ranks, world_size
from hybrid_ray.training.generated_text import sample
from hybrid_ray.training.hardware.fingerprint import fingerprint
from hybrid_ray.training.hardware.placement import check_placement
from hybrid_ray.training.heldout import heldout_loss
from hybrid_ray.training.reporter import Reporter, Reporters, RunWriter
from hybrid_ray.training.setup import Bench, Training
from hybrid_ray.training.step_timer import Pace
from hybrid_ray.training.telemetry.monitor import Monitor, device_name, energy_of_all

__all__ = ["Course", "evaluation_points"]

log = logging.getLogger("hybrid_ray")

_GRAVEST_FIRST: tuple[Status, ...] = ("diverged", "failed", "stopped", "finished")


def evaluation_points(config: TrainConfig) -> tuple[int, ...]:
    """Nominal steps from which on an evaluation is due: evenly over the run, the last at its end."""
    return tuple(round(config.steps * (index + 1) / config.evaluations) for index in range(config.evaluations))


class Course:
    """A run from its start, or from its last checkpoint if the run directory has one.

    Args:
        directory: the run directory; None: nothing is kept.

    Raises:
        CheckpointError: the directory has checkpoints and none is usable.
    """

    def __init__(
        self,
        bench: Bench,
        training: Training,
        accounts: Accounts,
        pace: Pace,
        reporter: Reporter,
        directory: Path | None,
    ) -> None:
        self.bench = bench
        self.training = training
        self.accounts = accounts
        self._pace = pace
        self._directory = directory
        self._heldout: dict[str, Heldout] = {}
        self._sample: str | None = None
        resumed = directory is not None and resume.restore(directory, bench, training, accounts)
        self._writer = RunWriter(directory, bench.run, resumed=resumed) if directory and rank() == 0 else None
        self._reporter = Reporters(self._writer, reporter) if self._writer else reporter
        if bench.setting() not in accounts.settings:
            accounts.settings.append(bench.setting())
        if resumed:
            log.info("going on from step %d", accounts.step)

    @property
    def ended(self) -> bool:
        return self.accounts.step >= self.bench.run.train.steps

    def told(self, record: StepRecord) -> None:
        """A step was done: tell whoever listens."""
        self._reporter.step(record)

    def evaluation_due(self) -> bool:
        """At the first moment at or after the next point that ends a cycle, and at the end of the run.

        Right after Correct the weights are as good as they get in a cycle; in the middle of Predict they are a guess.
        """
        curve, step = self.accounts.curve, self.accounts.step
        last = curve[-1].step if curve else 0
        passed = any(last < point <= step for point in evaluation_points(self.bench.run.train))
        return passed and (self.training.trainer.cycle_done or self.ended)

    def evaluate_and_report(self) -> Status | None:
        """Held-out loss, checkpoint, report, in this order, so that nothing reported is lost (collective).

        Returns the status that ends the run, one for all ranks, or None.

        Raises:
            Diverged: the loss is not finite.
            ConfigError: weights are no longer on the device that was asked for.
        """
        accounts = self.accounts
        check_placement(self.bench.module, self.bench.device)
        with accounts.other("calibration"):
            accounts.pace(self._pace.look())
        loss = self._evaluate("search")
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss is {loss} at nominal step {accounts.step}")
        seconds, calibration = from_first_rank([accounts.train_seconds, self._calibration()])
        evaluation = Evaluation(
            step=accounts.step,
            loss=loss,
            real_steps=accounts.real_steps,
            train_seconds=seconds,
            time=seconds / calibration,
        )
        accounts.curve.append(evaluation)
        log.info("step %d: held-out loss %.4f after %.1f s of training", evaluation.step, loss, seconds)
        if self.bench.run.train.checkpoint_every:
            self.checkpoint()
        return _agreed(self._reporter.evaluation(evaluation, calibration))

    def checkpoint_due(self) -> bool:
        every = self.bench.run.train.checkpoint_every
        return every > 0 and self.accounts.step % every == 0

    def checkpoint(self) -> None:
        """Keep the run's whole state (collective). Of a run that has ended only the last is kept."""
        if self._directory is not None:
            with self.accounts.other("checkpoint"):
                resume.save(self._directory, self.bench, self.training, self.accounts, keep=1 if self.ended else 2)

    def flush(self) -> None:
        """Write the steps so far, whatever comes next."""
        if self._writer:
            self._writer.flush()

    def close(self, status: Status, error: str | None, monitor: Monitor) -> RunResult:
        """The result, written to the run directory (collective). Only a finished run looks at the confirm split."""
        if status == "finished":
            if "search" not in self._heldout:  # resumed from a checkpoint of its very end
                self._evaluate("search")
            self._evaluate("confirm")
            with self.accounts.other("sample"):
                self._sample = sample(self.bench)
        self.bench.compiled.say_recompilations()
        result = self._result(status, error, monitor)
        if self._writer:
            self._writer.close(result)
        return result

    def _evaluate(self, split: Split) -> float:
        bench = self.bench
        with self.accounts.other("evaluation"):
            self._heldout[split] = heldout_loss(
                bench.module,
                bench.corpus,
                split,
                sequence_length=bench.run.train.sequence_length,
                device=bench.device,
                precision=bench.precision,
                share=not bench.sharded,
            )
        return self._heldout[split].loss

    def _calibration(self) -> float:
        return self.accounts.calibration(self.training.trainer.clock.seconds())

    def _result(self, status: Status, error: str | None, monitor: Monitor) -> RunResult:
        bench, accounts, trainer = self.bench, self.accounts, self.training.trainer
        costs = [accounts.train_seconds, self._calibration(), accounts.plain_step]
        seconds, calibration, plain_step = from_first_rank(costs)
        return RunResult(
            arm=bench.run.arm,
            seed=bench.run.seed,
            status=status,
            steps=accounts.step,
            real_steps=accounts.real_steps,
            predicted_steps=accounts.step - accounts.real_steps,
            train_seconds=seconds,
            calibration=calibration,
            plain_step=plain_step,
            heldout=self._heldout if status == "finished" else {},
            curve=tuple(accounts.curve),
            phase_steps=dict(accounts.phase_steps),
            phase_seconds=dict(accounts.phase_seconds),
            part_seconds=trainer.clock.seconds(),
            other_seconds=dict(accounts.other_seconds),
            tokens=dict(accounts.tokens),
            replay=trainer.replay_record(),
            statistics={**trainer.statistics(), **accounts.marks.training},
            fingerprint=fingerprint(bench.run, bench.corpus, bench.device, setting=accounts.setting(bench.setting())),
            machine={**_watched(monitor, bench.device), **accounts.marks.memory, **bench.evidence()},
            sample=self._sample,
            error=error,
        )


def _watched(monitor: Monitor, device: torch.device) -> dict[str, Any]:
    """What this rank's monitor saw, and the energy of all ranks' devices (collective)."""
    found = monitor.summary()
    joules = energy_of_all(found.get("gpu_energy_joules", 0.0), device_name(device))
    return {**found, "gpu_energy_of_all_workers_joules": joules} if joules and world_size() > 1 else found


def _agreed(status: Status | None) -> Status | None:
    """One answer for all ranks: the gravest that any of them has."""
    if world_size() == 1:
        return status
    votes = sum_over_ranks([float(status == name) for name in _GRAVEST_FIRST])
    return next((name for name, count in zip(_GRAVEST_FIRST, votes, strict=True) if count), None)
