"""How long a plain step takes here and now: the unit that a run's time is told in."""

import time
from dataclasses import replace

from hybrid_ray.config import RunConfig
from hybrid_ray.train.bench import Bench, synchronize
from hybrid_ray.train.parallel import from_first_rank

__all__ = ["calibrate", "middle_mean"]

DROPPED = 5  # first steps: allocations, first use of kernels, cold caches
STANDSTILL = 1e-12  # a learning rate at which nothing can diverge; the arithmetic is the same


def calibrate(bench: Bench) -> float:
    """Seconds of a plain step of the bench's run, in this process and under its present conditions (collective).

    Times some steps of the very trainer a baseline uses, with prediction off. The run must start afresh afterwards.

    The unit is the mean of the middle half. Training seconds are a sum, disturbances included, so the plain mean
    would be the unbiased unit. But over some 30 steps one preempted step moves it by percents, and that error would sit
    in every figure of the run. The middle mean leaves out the tails. It is lower than the mean by what disturbances
    add on the average, in every run alike, so this cancels where two runs are compared (speedup, frontier); what is
    left is far less noise. Against the median it averages half of the sample instead of one value.
    """
    run = _plain(bench.run)
    training = bench.fresh(run)
    closure = bench.next_loss(training, lambda tokens: None)
    seconds = []
    for _ in range(DROPPED + run.train.calibration_steps):
        synchronize(bench.device)
        started = time.perf_counter()
        training.trainer.step(closure)
        synchronize(bench.device)
        seconds.append(time.perf_counter() - started)
    return from_first_rank([middle_mean(seconds[DROPPED:])])[0]


def middle_mean(values: list[float]) -> float:
    """Mean of the middle half: a quarter is left out at either end."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)


def _plain(run: RunConfig) -> RunConfig:
    return replace(
        run,
        replay=None,
        hybrid=replace(run.hybrid, predictor="off"),
        train=replace(run.train, learning_rate=STANDSTILL),
    )
