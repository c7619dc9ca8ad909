"""Times a run's real steps, before it starts, beside the plain steps that its time is told in."""

import math
from dataclasses import dataclass, replace

import torch

from hybrid_ray.config import PredictorConfig, RunConfig
from hybrid_ray.method.ranks import from_first_rank
from hybrid_ray.tasks.load import optimizer_of
from hybrid_ray.training.setup import TrainSetup

__all__ = ["PLAIN_PARTS", "StepCosts", "middle_mean", "time_steps"]

PLAIN_PARTS = ("data", "forward", "backward", "optimizer")  # of a real step: all that a plain step does too

_DROPPED = 5  # first steps of each kind, not counted: allocations, first use of kernels, cold caches
_TURN = 2  # steps before the other kind takes its turn: short, so that both meet the same load of the machine
_STANDSTILL = 1e-12  # learning rate of timed steps: nothing can diverge, and the arithmetic is the same


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCosts:
    """What a step of a run costs, each as a ratio of seconds; 1 where there is nothing to compare.

    Attributes:
        real_step: plain parts of a real step of the run / those of the same step without prediction. Predicting can
            make them dearer without taking part in them, for example by using up the caches.
        optimizer: the optimizer's part of a step / that of a step of ``train.clock_optimizer``.
    """

    real_step: float = 1.0
    optimizer: float = 1.0


class _Steps:
    """Real steps of one trainer, which take turns with those of another."""

    def __init__(self, setup: TrainSetup, run: RunConfig, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.optimizer = optimizer or _at_a_standstill(setup, run)
        training = setup.training(run, optimizer=self.optimizer)
        self._trainer, self._closure = training.trainer, setup.next_loss(training, lambda tokens: None)
        self.do(_DROPPED)

    def do(self, number: int) -> dict[str, float]:
        """Seconds by part of that many real steps. Predicted steps between them are done and not counted."""
        trainer = self._trainer
        before, done = trainer.clock.seconds(), 0
        while done < number:
            done += not trainer.step(self._closure).predicted
        return {part: seconds - before.get(part, 0.0) for part, seconds in trainer.clock.seconds().items()}


def time_steps(setup: TrainSetup) -> StepCosts:
    """Time steps of the setup's run (collective). The weights and BatchNorm change: use `TrainSetup.fresh` after it.

    Two kinds of steps are compared by taking turns, so that the machine's load, which changes its speed by more than
    the effects measured here, is the same for both; each ratio is the geometric interquartile mean over all turns.
    ``benchmarks/calibration.py`` shows how much it varies on a busy machine.

    With ``train.clock_optimizer`` the states of two optimizers are in memory; otherwise no more than the run needs.
    """
    run = setup.run
    setup.reset()  # the rehearsal may have spoilt the weights
    plain_run = replace(
        run, replay=None, hybrid=replace(run.hybrid, predictor=PredictorConfig(name="none"), offload_optimizer=False)
    )
    plain = _Steps(setup, plain_run)
    costs = StepCosts()
    if run.hybrid.predictor.name != "none" and run.replay is None:
        # As the run is where it makes predictions: after warmup and before its last part.
        everywhere = replace(run.hybrid, warmup_steps=0, first_fraction=0.0, off_fraction=0.0, offload_optimizer=False)
        own = _Steps(setup, replace(run, hybrid=everywhere), plain.optimizer)
        costs = replace(costs, real_step=_ratio(own, plain, setup, PLAIN_PARTS))
    unit = run.train.clock_optimizer
    if unit not in (None, run.train.optimizer):
        other = _Steps(setup, replace(plain_run, train=replace(plain_run.train, optimizer=unit)))
        costs = replace(costs, optimizer=_ratio(plain, other, setup, ("optimizer",)))
    real_step, optimizer = from_first_rank([costs.real_step, costs.optimizer])
    return StepCosts(real_step=real_step, optimizer=optimizer)


def _ratio(first: _Steps, second: _Steps, setup: TrainSetup, parts: tuple[str, ...]) -> float:
    """Seconds of these parts of a step of ``first`` / of ``second``. Which of them begins changes with each turn."""
    logs = []
    for turn in range(setup.run.train.timed_steps // _TURN):
        seconds = {}
        for steps in (first, second) if turn % 2 else (second, first):
            spent = steps.do(_TURN)
            seconds[steps] = sum(spent[part] for part in parts)
        logs.append(math.log(seconds[first] / seconds[second]))
    return math.exp(middle_mean(logs))


def _at_a_standstill(setup: TrainSetup, run: RunConfig) -> torch.optim.Optimizer:
    """The run's optimizer with a rate of almost nothing, also where the user's task chose its own rate."""
    optimizer = optimizer_of(setup.task, setup.module, run.optimizer_settings, seed=run.seed)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # compiled optimizers read it in place
            group["lr"].fill_(_STANDSTILL)
        else:
            group["lr"] = _STANDSTILL
    return optimizer


def middle_mean(values: list[float]) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter."""
    cut = len(values) // 4
    middle = sorted(values)[cut : len(values) - cut]
    return sum(middle) / len(middle)
