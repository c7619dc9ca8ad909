"""One cycle of the method: evaluate a window of real steps, then plan the next prediction."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.gate.agreement import Agreement, AgreementMeter
from hybrid_ray.method.gate.agreement_score import AgreementScore
from hybrid_ray.method.gate.coordinate_sample import CoordinateSample
from hybrid_ray.method.gate.horizon import choose_horizon
from hybrid_ray.method.gate.payback import FinishedCycle, Payback
from hybrid_ray.method.gradients import Gradient
from hybrid_ray.method.guard.divergence import Level
from hybrid_ray.method.learning_rate import LearningRate
from hybrid_ray.method.predictors import build_predictor
from hybrid_ray.method.predictors.corrector import Corrector
from hybrid_ray.method.ranks import sum_over_ranks
from hybrid_ray.method.weights import Weights

__all__ = ["Cycle"]


class Cycle:
    """Holds predictor, measurements, confidence and corrector, and updates them together.

    Args:
        weights: the parameters as they are now. When they change, make a new Cycle.
        optimizer: the optimizer; some predictors read its state.
        config: the settings; the predictor is not ``none``.
        total_steps: nominal steps of the run, if known.
        seed: seed of everything random: sampled coordinates, noise, rounding.
    """

    def __init__(
        self,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        config: HybridConfig,
        *,
        total_steps: int | None,
        seed: int,
    ) -> None:
        predictor = build_predictor(weights, optimizer, config, total_steps=total_steps, seed=seed)
        assert predictor is not None
        self.predictor = predictor
        self.score = AgreementScore()
        self.payback = Payback(config, seed=seed)
        self.corrector = Corrector(weights.groups, rho=config.residual_feedback)
        self.agreement = AgreementMeter(CoordinateSample(weights, one_in=config.sample_one_in, seed=seed))
        self.steps = 0  # real steps of the open window
        self.open = False
        self.planned_norms = [0.0] * weights.groups  # |D| by group
        self.share = 1.0  # of the full jump, that the plan has
        self.lr_ratio = 0.0  # lr / lr_max of the last real step
        self.coupled_to: list[float] | None = None  # lr / lr_max that the plan used; None once the next step has begun
        self._weights = weights
        self._config = config
        self._total = total_steps

    @property
    def confidence(self) -> float | None:
        """The confidence in a full jump, at the last end of a window; None if none is computed (`Payback`)."""
        return self.payback.confidence

    def open_window(self, *, keep: bool) -> None:
        """Start a window of real steps. Does nothing if one is already open.

        Args:
            keep: whether the predictor learns from these steps; False once the run makes no more predictions.
        """
        if self.open:
            return
        if keep:
            self.predictor.open_window()
        self.agreement.open(self._weights.local())
        self.open, self.steps = True, 0

    def observe(self, gradient: Gradient, rate: LearningRate, steps_done: int) -> None:
        """Learn from the gradients of a real step, the ``steps_done``-th nominal one, before it is applied."""
        self.payback.observe_step(gradient.loss, gradient.norm)
        self.lr_ratio = max(rate.ratios)
        if self.predictor.takes_gradients:
            self.predictor.observe(
                self._weights.gradients(), rates=rate.now, progress=self._progress(steps_done, unknown=0.0)
            )

    def _progress(self, steps_done: int, *, unknown: float) -> float:
        return min(1.0, steps_done / self._total) if self._total else unknown

    def observe_jump(self, along: float) -> bool:
        """Learn from the first gradient after a prediction; ``along`` is <g, D/H>. Returns whether it overshot."""
        overshot = along > 0.0
        self.score.observe_jump(overshot=overshot)
        self.payback.state.observe_jump(along * self.predictor.applied)
        return overshot

    def pause_window(self) -> None:
        """End the window without comparing it with a forecast: after a micro-correction or for a rollback."""
        self.agreement.add_real(self._weights.local())
        self._close_predictor()

    def look_back(self) -> Agreement | None:
        """End the window and compare its displacement with the forecast."""
        measured = self.agreement.close(self._weights.local(), self.steps)
        self._close_predictor()
        if measured is not None:
            self.corrector.observe_window(measured.alpha_by_group)
        return measured

    def learn(self, measured: Agreement | None, worst: Level, *, looked: float) -> FinishedCycle | None:
        """Learn from a finished window, ``worst`` being the highest divergence level in it.

        Args:
            looked: held-out loss after the cycle; NaN: not measured.
        """
        if measured is not None:
            self.score.observe_window(measured)
            size = measured.size * self.predictor.horizon / (self.steps * self.share)
            self.payback.state.observe_window(measured, jump_size=size)
        return self.payback.end_cycle(worst, looked=looked)

    def begin(self, steps_done: int, *, looked: float) -> None:
        """Begin a cycle after ``steps_done`` nominal steps, and compute the confidence in its jump.

        Args:
            looked: held-out loss before the cycle; NaN: not measured.
        """
        self.payback.begin_cycle(
            looked=looked,
            agreement=self.score.value,
            displacement_ratio=self.agreement.displacement_ratio,
            lr=self.lr_ratio,
            progress=self._progress(steps_done, unknown=math.nan),
        )

    def _close_predictor(self) -> None:
        if self.predictor.window_open:
            self.predictor.close_window(self.steps)
        self.open = False

    def plan(
        self,
        rate: LearningRate,
        *,
        ratio: float,
        share: float = 1.0,
        horizon: int | None = None,
        norms: Sequence[float] | None = None,
    ) -> int:
        """Compute the next displacement. The next window is compared with it even if it is not applied.

        Args:
            rate: the learning rate now.
            ratio: share of the horizon that remains after recoveries shortened it.
            share: share of the full jump that was decided on. Of a predictor whose D does not depend on the horizon, D
                is multiplied by it; the rest of D is dropped.
            horizon: steps to predict, if a replay sets them.
            norms: norms of the displacement by group, if a replay sets them.

        Returns:
            The horizon; 0 if the displacement is not finite on some rank. The displacement is then set to zero.
        """
        coupled = self._config.couple_lr and self.predictor.forecasts
        # The length of D of a predictor that does not forecast depends neither on the rate nor on the horizon.
        fixed = 1.0 if self.predictor.forecasts else ratio * share
        if horizon is None:
            horizon = choose_horizon(
                self._config, confidence=self.confidence or 0.0, lr_ratio=max(rate.ratios), ratio=ratio * share
            )
        self.share = min(1.0, horizon / self._config.prediction_horizon) if self.predictor.forecasts else fixed
        found = self._displace(horizon, rate.ratios if coupled else [fixed] * self._weights.groups, norms)
        self.coupled_to = rate.ratios if coupled and norms is None and found else None
        return found

    def follow(self, rate: LearningRate) -> None:
        """Recompute the plan at the start of a step if the learning rate has changed since the plan was made.

        A loop that writes rates into the parameter groups does so between two steps, so after the plan; a scheduler
        changes the rate before the plan. Both now give the same displacement. The horizon does not change.
        """
        planned, self.coupled_to = self.coupled_to, None
        if planned is not None and planned != rate.ratios:
            self._displace(self.predictor.horizon, rate.ratios, None)

    def _displace(self, horizon: int, coupling: Sequence[float], norms: Sequence[float] | None) -> int:
        """Compute the displacement of a plan. Returns the horizon, or 0 if it is not finite (see `plan`)."""
        factors = [a * b for a, b in zip(coupling, self.corrector.factors, strict=True)]
        self.predictor.plan(horizon, factors, norms)
        squares = sum_over_ranks(self.predictor.squares())
        direction = self.predictor.direction
        if not all(map(math.isfinite, squares)):
            assert direction is not None
            direction.zero_()
            self.planned_norms = [0.0] * len(squares)
            self.agreement.foresee(None, horizon)
            return 0
        self.planned_norms = [square**0.5 for square in squares]
        self.agreement.foresee(None if direction is None else direction.tensors, horizon)
        return horizon

    def withdraw(self, *, keep: bool, loss: float) -> FinishedCycle | None:
        """Undo the last prediction in place. An open window is split, so the undo does not count as real steps.

        Args:
            loss: of the real step that led to this; it may not be finite.

        Returns:
            What the cycle brought; None if there is no trend yet.
        """
        broken_off = self.payback.break_off(loss)
        was_open = self.open
        if was_open:
            self.pause_window()
        self.predictor.withdraw()
        if was_open:
            self.open_window(keep=keep)
        return broken_off

    def forget(self, *, keep: bool, loss: float) -> FinishedCycle | None:
        """Discard the averaged displacement, its agreement with real steps and its correction factors.

        What was learnt about jumps stays. Arguments and result as of `withdraw`.
        """
        broken_off = self.payback.break_off(loss)
        was_open = self.open
        if was_open:
            self.pause_window()
        self.predictor.reset()
        self.score = AgreementScore()
        self.corrector = Corrector(self._weights.groups, rho=self._config.residual_feedback)
        self.agreement.foresee(None, 1)
        if was_open:
            self.open_window(keep=keep)
        return broken_off

    def state_dict(self) -> dict[str, Any]:
        return {
            "predictor": self.predictor.state_dict(),
            "score": self.score.state_dict(),
            "payback": self.payback.state_dict(),
            "corrector": self.corrector.state_dict(),
            "agreement": self.agreement.state_dict(),
            "steps": self.steps,
            "open": self.open,
            "planned_norms": list(self.planned_norms),
            "coupled_to": self.coupled_to,
            "share": self.share,
            "lr_ratio": self.lr_ratio,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.predictor.load_state_dict(state["predictor"])
        self.score.load_state_dict(state["score"])
        self.payback.load_state_dict(state["payback"])
        self.corrector.load_state_dict(state["corrector"])
        self.agreement.load_state_dict(state["agreement"])
        self.steps, self.open = state["steps"], state["open"]
        self.planned_norms = list(state["planned_norms"])
        self.coupled_to = state["coupled_to"]
        self.share, self.lr_ratio = state["share"], state["lr_ratio"]
