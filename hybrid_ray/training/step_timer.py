"""What a plain step costs here and now, with prediction off: a check on what a run's own real steps cost."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from hybrid_ray.config import RunConfig
from hybrid_ray.method.gradients import compute_gradients
from hybrid_ray.method.ranks import from_first_rank
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.training.setup import Training, TrainSetup, synchronize

__all__ = ["StepTimer", "middle_mean"]

DROPPED = 5  # first steps: allocations, first use of kernels, cold caches
PROBES = 8  # gradients timed at each look
STANDSTILL = 1e-12  # a learning rate at which nothing can diverge; the arithmetic is the same


class StepTimer:
    """Seconds of a plain step of the setup's run, in this process, under the conditions of the moment.

    Before the run `calibrate` times plain steps, and between them *probes*: the gradient of one fixed batch, computed
    and thrown away. A plain step costs a fixed multiple of a probe. So later a few probes tell what a plain step costs
    then (`estimate`), without a trace in the run. That matters: a neighbour that comes or goes changes the speed of a
    machine by more than the effects that are measured here.

    A run's time is told in the run's own real steps (`RunResult.calibration`). This is the measurement beside it, from
    which `RunResult.plain_step` comes: real steps of a hybrid run must cost what these do (`RunResult.real_step_cost`).

    A cost is the mean of the middle half. Over some 30 steps one preempted step moves the plain mean by percents; the
    middle mean leaves out the tails, and against the median it averages half of the sample instead of one value. It is
    lower than the mean by what disturbances add on the average, and the run's own steps have those in them.
    """

    def __init__(self, setup: TrainSetup) -> None:
        self._setup = setup
        self._batch = setup.to_device(setup.sampler().next())
        self._steps_per_probe = 1.0
        self.optimizer_cost = 1.0

    def calibrate(self) -> float:
        """Seconds of a plain step at the start (collective). The run must start afresh afterwards.

        The steps are those of a baseline: the same trainer with prediction off. Where time is told in the steps of
        another optimizer, they are that one's, and the run's own optimizer takes turns with it: only beside each other,
        under the same conditions, can the two be compared (``optimizer_cost``). Both states are held at that time.
        """
        setup, run = self._setup, _plain(self._setup.run)
        unit = replace(run, train=replace(run.train, optimizer=run.train.clock_optimizer or run.train.optimizer))
        training = setup.fresh(unit)
        own = None if unit == run else setup.training(run)
        steps, probes, costs = [], [], [[1.0], [1.0]]
        for _ in range(DROPPED + run.train.calibration_steps):
            seconds, cost = self._step(training)
            steps.append(seconds)
            probes.append(_seconds(setup.device, self._probe))
            if own is not None:
                costs[0].append(self._step(own)[1])
                costs[1].append(cost)
        mine, theirs = (middle_mean(values[-run.train.calibration_steps :]) for values in costs)
        step, probe, self.optimizer_cost = from_first_rank(
            [middle_mean(steps[DROPPED:]), middle_mean(probes[DROPPED:]), mine / theirs]
        )
        self._steps_per_probe = step / probe
        return step

    def _step(self, training: Training) -> tuple[float, float]:
        """Seconds of one plain step, and of the optimizer in it."""
        closure, clock = self._setup.next_loss(training, lambda tokens: None), training.trainer.clock
        before = clock.seconds().get("optimizer", 0.0)
        seconds = _seconds(self._setup.device, lambda: training.trainer.step(closure))
        return seconds, clock.seconds()["optimizer"] - before

    def estimate(self) -> float:
        """Seconds of a plain step now, from a few probes (collective). The run's state stays as it is."""
        devices = [self._setup.device] if self._setup.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # dropout draws
            seconds = [_seconds(self._setup.device, self._probe) for _ in range(PROBES)]
        return from_first_rank([middle_mean(seconds) * self._steps_per_probe])[0]

    def _probe(self) -> None:
        setup = self._setup

        def loss() -> torch.Tensor:
            with setup.precision():
                return setup.compiled.forward(self._batch)

        compute_gradients(setup.model, loss, accumulate=setup.accumulate, clock=StepClock(setup.device))
        setup.model.zero_grad(set_to_none=True)


def middle_mean(values: list[float]) -> float:
    """Mean of the middle half: a quarter is left out at either end."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def _plain(run: RunConfig) -> RunConfig:
    return replace(
        run,
        replay=None,
        hybrid=replace(run.hybrid, predictor="none"),
        train=replace(run.train, learning_rate=STANDSTILL),
    )
