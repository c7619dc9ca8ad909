"""Confidence: the probability that a jump is paid back (docs/method.md, section 3)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.gate.dynamics import DynamicsModel, LinUCB, make_dynamics
from hybrid_ray.method.gate.dynamics.base import bounded
from hybrid_ray.method.gate.features import TrainingState
from hybrid_ray.method.gate.real_step_trend import Line, RealStepTrend
from hybrid_ray.method.guard.divergence import Level
from hybrid_ray.method.ranks import from_first_rank, world_size

__all__ = ["JUMPS", "FinishedCycle", "Payback"]

JUMPS = (1.0, 0.5, 0.25)
"""Lengths of a jump that a decision chooses from, as shares of the full one, the longest first."""

_PREDICTED_STEP = 0.02  # cost of a predicted step, in real steps (benchmarks/predictor_cost.py, part step)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedCycle:
    """What a cycle brought."""

    jump: float  # share of the full jump; 0: none
    confidence: float | None  # in this jump, before the cycle; None: none was computed
    paid_back: bool  # the event whose probability is the confidence


@dataclass(kw_only=True, slots=True)
class _OpenCycle:
    """A cycle under way: a jump if one was made, then real steps until the next decision."""

    line: Line | None  # the trend at the decision
    features: list[float]  # at the decision
    alone: float = 0.0  # outcome expected of real steps alone, at most that of the trend, 0
    confidences: dict[float, float] = field(default_factory=dict)  # computed so far, by jump
    jump: float = 0.0
    predicted: int = 0  # steps
    loss_before: float = math.nan  # of the last real step before it
    losses: list[float] = field(default_factory=list)  # of its real steps
    looked: float = math.nan  # held-out loss before the jump


class Payback:
    """Confidence is the probability that at the end of the coming cycle (jump of H steps, then its real steps) the loss
    is within ``payback_tolerance`` of what the trend of real steps alone would give.

    - The *outcome* of a cycle is log(loss / expected loss), averaged over the second half of its real steps. The
      expected loss is the trend of real steps at the decision (`RealStepTrend`), extended to the step. After a look it
      is the change of the held-out loss instead, relative to the change that the trend expects.
    - A dynamics model learns from every cycle to forecast the outcome from the training state (`TrainingState`) and the
      length of the jump. Cycles without a jump teach it how losses leave their trend without one.
    - If it expects cycles without a jump to end below the trend, that is what real steps alone would give, so the
      outcome of a jump is compared with it. If it expects them above, the trend counts: a loss that jumps have driven
      up does not excuse the next jump.
    - The loss is the one that will be measured, noise included, so the run itself shows whether the probabilities are
      right (`TrainerStats`).

    Before the first cycle with an outcome the confidence is 0. A cycle that trouble ends early counts with the loss
    that ended it. If no decision needs the confidence (`HybridConfig.uses_confidence`), none is computed.

    Args:
        config: the settings of the method.
        seed: of the dynamics model.
    """

    def __init__(self, config: HybridConfig, *, seed: int) -> None:
        self._config = config
        self.trend = RealStepTrend()
        self.state = TrainingState()
        self.steps = 0  # real steps
        used = config.uses_confidence
        self.model: DynamicsModel | None = make_dynamics(config.dynamics, seed=seed) if used else None
        self.bandit = LinUCB() if config.horizon_mode == "linucb" else None
        self.confidence: float | None = 0.0 if used else None  # in a full jump, at the last end of a window
        self._learnt = 0  # cycles
        self._cycle: _OpenCycle | None = None

    @property
    def looked(self) -> bool:
        """Whether the held-out loss was measured before the cycle under way."""
        return self._cycle is not None and math.isfinite(self._cycle.looked)

    def observe_step(self, loss: float, norm: float) -> None:
        """Update with the loss and gradient norm of a real step that is applied."""
        self.steps += 1
        cycle = self._cycle
        if cycle is None:
            self.trend.observe(loss, self.steps)
        else:
            if cycle.jump > 0.0 and not cycle.losses:
                self.state.observe_rise(loss - cycle.loss_before)
            cycle.losses.append(loss)
        self.state.observe_step(loss, norm)

    def break_off(self, loss: float) -> FinishedCycle | None:
        """End the cycle early because of trouble at a real step with this loss, which may not be finite.

        Returns what its jump brought, which was not paid back; None without a jump or a trend. The model learns from it
        and keeps what it knows: if it forgot which jumps led to the trouble, it would recommend them again.
        """
        cycle, self._cycle = self._cycle, None
        if cycle is None or cycle.line is None or not cycle.jump:
            return None
        outcome = bounded(cycle.line.relative(loss, self.steps + 1) if math.isfinite(loss) else math.nan)
        self._learn(cycle, outcome)
        confidence = cycle.confidences.get(cycle.jump)
        return FinishedCycle(jump=cycle.jump, confidence=confidence, paid_back=False)

    def end_cycle(self, worst: Level, *, looked: float = math.nan) -> FinishedCycle | None:
        """End the cycle and learn from it. Returns None if it has no outcome: no real step, or no trend yet.

        Args:
            worst: the highest divergence level in it.
            looked: the held-out loss now, if it was also measured before the cycle.
        """
        cycle, self._cycle = self._cycle, None
        if cycle is None or not cycle.losses:
            return None
        first_step = self.steps - len(cycle.losses) + 1
        half = len(cycle.losses) // 2
        finished = None
        if cycle.line is not None:
            relative = [cycle.line.relative(loss, first_step + n) for n, loss in enumerate(cycle.losses)]
            outcome = end = math.fsum(relative[half:]) / len(relative[half:])
            if math.isfinite(looked) and math.isfinite(cycle.looked):
                outcome = _looked_outcome(cycle, looked, self.steps)
            paid_back = outcome - cycle.alone <= math.log1p(self._config.payback_tolerance)
            confidence = cycle.confidences.get(cycle.jump)
            finished = FinishedCycle(jump=cycle.jump, confidence=confidence, paid_back=paid_back)
            self._learn(cycle, outcome)
            self.state.end_cycle(
                jump=cycle.jump,
                first=relative[0],
                middle=math.fsum(relative[:half]) / half if half else relative[0],
                end=end,
                paid_back=end <= math.log1p(self._config.payback_tolerance),
                level=worst.rank,
            )
        for n, loss in enumerate(cycle.losses[half:]):
            self.trend.observe(loss, first_step + half + n)
        return finished

    def _learn(self, cycle: _OpenCycle, outcome: float) -> None:
        self._learnt += 1
        if self.model is not None:
            self.model.observe(cycle.features, cycle.jump, outcome)
        if self.bandit is not None:
            cost = max(1, len(cycle.losses)) + _PREDICTED_STEP * cycle.predicted
            self.bandit.observe(cycle.features, cycle.jump, -bounded(outcome) / cost)

    def begin_cycle(self, *, looked: float = math.nan, **numbers: float) -> None:
        """Begin a cycle at the end of a window, and compute the confidence in a full jump.

        Args:
            looked: the held-out loss now, if it was measured.
            numbers: features that are known elsewhere, by name.
        """
        line = self.trend.line(self.steps)
        if line is not None:
            numbers["trend_slope"] = line.slope * self._config.full_steps / self.state.scale
        self.state.describe(**numbers)
        before = self.state.average("loss 5")
        self._cycle = _OpenCycle(line=line, features=self.state.vector(), loss_before=before, looked=looked)
        if self.model is not None:
            self.confidence = self.confidence_in(1.0)

    def confidence_in(self, jump: float) -> float:
        """The confidence in a jump of this share of the full one. Collective: all ranks get rank 0's number."""
        cycle, model = self._cycle, self.model
        assert cycle is not None
        assert model is not None
        if not self._learnt:
            return 0.0
        if jump not in cycle.confidences:
            alone = model.forecast(cycle.features, 0.0).mean
            below = alone < 0.0  # the trend
            found = model.effect(cycle.features, jump) if below else model.forecast(cycle.features, jump)
            numbers = [found.paid_back(self._config.payback_tolerance), min(0.0, alone)]
            cycle.confidences[jump], cycle.alone = from_first_rank(numbers) if world_size() > 1 else numbers
        return cycle.confidences[jump]

    def most_gainful(self) -> float:
        """The bandit's choice among no jump and `JUMPS`."""
        assert self._cycle is not None
        assert self.bandit is not None
        jump = self.bandit.choose(self._cycle.features, (*JUMPS, 0.0))
        return from_first_rank([jump])[0] if world_size() > 1 else jump

    def jumps(self, share: float, predicted: int) -> None:
        """Note the jump of the cycle that has begun: its length as a share of the full one, and its predicted steps."""
        if self._cycle is not None:
            self._cycle.jump, self._cycle.predicted = share, predicted
            if self.model is not None:
                self.confidence_in(share)  # of a random jump it is not known yet

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": None if self.model is None else self.model.state_dict(),
            "bandit": None if self.bandit is None else self.bandit.state_dict(),
            "trend": self.trend.state_dict(),
            "state": self.state.state_dict(),
            "cycle": None if self._cycle is None else asdict(self._cycle),
            "steps": self.steps,
            "confidence": self.confidence,
            "learnt": self._learnt,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.model is not None:
            self.model.load_state_dict(state["model"])
        if self.bandit is not None:
            self.bandit.load_state_dict(state["bandit"])
        self.trend.load_state_dict(state["trend"])
        self.state.load_state_dict(state["state"])
        self.steps, self.confidence = state["steps"], state["confidence"]
        self._learnt = state["learnt"]
        cycle = state["cycle"]
        line = None if cycle is None or cycle["line"] is None else Line(**cycle["line"])
        self._cycle = None if cycle is None else _OpenCycle(**(cycle | {"line": line}))


def _looked_outcome(cycle: _OpenCycle, looked: float, step: int) -> float:
    """The outcome by held-out losses: the loss relative to the trend before the cycle, plus the measured change."""
    assert cycle.line is not None
    before = cycle.line.relative(cycle.loss_before, cycle.line.step)
    change = math.log1p(max(-0.95, (looked - cycle.looked) / max(abs(cycle.looked), 1e-12)))
    return before + change - cycle.line.relative(cycle.line.at(step), cycle.line.step)
