"""Times plain steps (prediction off) in the current process, to check the cost of a run's own real steps."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from hybrid_ray.config import PredictorConfig, RunConfig
from hybrid_ray.method.gradients import compute_gradients
from hybrid_ray.method.guard.module_buffers import ModuleBuffers
from hybrid_ray.method.ranks import from_first_rank
from hybrid_ray.method.step_clock import StepClock
from hybrid_ray.training.setup import Training, TrainSetup, synchronize

__all__ = ["StepTimer", "middle_mean"]

DROPPED = 5  # first steps, not counted: allocations, first use of kernels, cold caches
PROBES = 2  # gradients timed per estimate
ESTIMATES = 32  # per run, evenly spaced: the load of the machine at a few moments is not its mean
STANDSTILL = 1e-12  # learning rate of timed steps: nothing can diverge, and the arithmetic is the same


class StepTimer:
    """Measures the seconds of a plain step of the setup's run, in this process and under the current load.

    Before the run, `calibrate` times plain steps alternating with *probes*: the gradient of one fixed batch, computed
    and discarded. The ratio of the two is fixed. During the run, `estimate` times a few probes and multiplies, without
    changing the run. This follows the load of the machine, which changes its speed by more than the effects measured
    here.

    The unit of a run's time is its own real steps (`RunResult.calibration`). This independent measurement gives
    `RunResult.plain_step`; their ratio, `RunResult.real_step_cost`, should be 1.

    Before the run a cost is the interquartile mean: over some 30 steps one preempted step shifts the mean by percents.
    During the run it is the mean over all its moments, because the run's own steps include disturbances too.
    """

    def __init__(self, setup: TrainSetup) -> None:
        self._setup = setup
        self._batch = setup.to_device(setup.sampler().next())
        self._steps_per_probe = 1.0
        self.optimizer_cost = 1.0

    def calibrate(self) -> float:
        """Seconds of a plain step before the run (collective). It changes the weights: use `TrainSetup.fresh` after it.

        The steps are those of a baseline: the same trainer without prediction. With ``train.clock_optimizer`` they use
        that optimizer and alternate with steps of the run's own, so that both are timed under the same load
        (``optimizer_cost``). The states of both optimizers are in memory then.
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
        """Seconds of one plain step, and of its optimizer part."""
        closure, clock = self._setup.next_loss(training, lambda tokens: None), training.trainer.clock
        before = clock.seconds().get("optimizer", 0.0)
        seconds = _seconds(self._setup.device, lambda: training.trainer.step(closure))
        return seconds, clock.seconds()["optimizer"] - before

    def estimate(self) -> float:
        """Seconds of a plain step now, from a few probes (collective). The run's state is not changed."""
        devices = [self._setup.device] if self._setup.device.type == "cuda" else []
        buffers = ModuleBuffers(self._setup.model)  # BatchNorm's statistics
        buffers.keep()
        with torch.random.fork_rng(devices=devices):  # dropout in a probe must not change the run's random state
            seconds = [_seconds(self._setup.device, self._probe) for _ in range(PROBES)]
        buffers.settle(applied=False)
        return from_first_rank([sum(seconds) / PROBES * self._steps_per_probe])[0]

    def _probe(self) -> None:
        setup = self._setup

        def loss() -> torch.Tensor:
            with setup.precision():
                return setup.compiled.forward(self._batch)

        compute_gradients(setup.model, loss, accumulate=setup.accumulate, clock=StepClock(setup.device))
        setup.model.zero_grad(set_to_none=True)


def middle_mean(values: list[float]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter."""
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
        hybrid=replace(run.hybrid, predictor=PredictorConfig(name="none")),
        train=replace(run.train, learning_rate=STANDSTILL),
    )
