"""Slow momentum: AdEMAMix (arXiv 2409.03137) with the slow part applied in jumps.

Every real step adds its gradient to a slow average q. After K real steps, one jump applies the K steps along q that
AdEMAMix would have made one by one, and the next gradient is taken at the new weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from hybrid_ray.config.predictors import SlowMomentumOptions
from hybrid_ray.errors import ConfigError
from hybrid_ray.method.predictors.base import Number, Predictor
from hybrid_ray.method.predictors.caution import restrain_
from hybrid_ray.method.weights import local_part
from hybrid_ray.optim.ademamix import AdEMAMix, slow_decay
from hybrid_ray.optim.muon import MuonAdamW, MuonAdEMAMix, orthogonal_step
from hybrid_ray.optim.spam import AdamWSPAM
from hybrid_ray.optim.streamed import StreamedAdam, StreamedAdamW, StreamedSGD

__all__ = ["SlowMomentum"]

Rule = Callable[[torch.Tensor, Mapping[str, Any], Mapping[str, Any]], torch.Tensor]
"""(q of one parameter, its optimizer state, its parameter group) -> the step along q at learning rate 1, a new tensor.
"""


_ADAMS = (
    *(torch.optim.Adam, torch.optim.AdamW, StreamedAdam, StreamedAdamW),
    *(AdamWSPAM, AdEMAMix, MuonAdamW, MuonAdEMAMix),
)


class SlowMomentum(Predictor):
    """D = -lr x (alpha s) x K x q / (sqrt(v / (1 - beta2^t)) + eps), where v and t are the optimizer's.

    - q <- rho q + (1 - rho) g at every applied real step; g is as the optimizer gets it (reduced, clipped). q starts at
      0 and is not bias-corrected. rho is ``slow_decay(s, beta3)``.
    - s is the share of the run that is done. lr and s are those of the last real step, because at planning time the
      schedule has already advanced. D contains the learning rate, so ``couple_lr`` has no effect.
    - K is the number of real steps since the last jump. The horizon only divides D into predicted steps; the
      length of D does not depend on it. A jump that the gate refused does not lengthen the next one: K is at most the
      number of real steps in one cycle.
    - SGD has no second moment: D = -lr x (alpha s) x K x q.
    - For Muon's matrices, q is orthogonalised as in Muon and scaled to |q| / |b| times the length of Muon's own step,
      where b is Muon's momentum. So, as in AdEMAMix, the ratio of the slow part to the fast part is alpha |q| / |b|.
      ``matrices: orthogonal`` does the same with Adam's first moment as b. The iteration that makes a matrix orthogonal
      then runs once per jump, not in every step as in Muon.
    - D contains no weight decay.

    With K = 1 this is AdEMAMix, except that a jump is applied after the real step, not together with it.

    Two buffers: q and D, 8 bytes per parameter in fp32. D is stored, not recomputed, because q and v may have changed
    when a prediction is resumed after a micro-correction or withdrawn.

    Raises:
        ConfigError: the optimizer is not supported.
    """

    takes_gradients = True
    forecasts = False

    Options = SlowMomentumOptions
    options: SlowMomentumOptions
    since: int  # real steps since the last jump
    progress: float  # s
    rates: list[float]
    needs_total_steps = True

    def prepare(self) -> None:
        if self.config.horizon_mode == "scaled":
            raise ConfigError(
                "horizon_mode is 'scaled' but the jumps of slow_momentum do not depend on the horizon: use fixed"
            )
        self._rule = _rule(self.optimizer)
        self._most = self.config.cycle_steps - self.config.prediction_horizon
        self._orthogonal = self._orthogonal_numbers()
        if self._orthogonal and self._rule is _as_it_is:
            raise ConfigError(
                f"hybrid.predictor.matrices is 'orthogonal' but {type(self.optimizer).__name__} has no first moment: "
                "use an optimizer of Adam's family, or matrices: second_moment"
            )
        if any(hasattr(self.weights.parameters[number], "to_local") for number in self._orthogonal):
            raise ConfigError(
                "slow_momentum makes whole matrices orthogonal but FSDP splits them: use train.parallel: ddp, or an "
                "optimizer other than muon with matrices: second_moment"
            )
        self.average = self.add_buffers("average")

    def _orthogonal_numbers(self) -> set[int]:
        """Numbers of the matrices whose step is `_orthogonal`: Muon's own, and all hidden ones if asked."""
        groups = self.optimizer.param_groups
        chosen = {number for number, place in enumerate(self.weights.group_of) if groups[place].get("muon")}
        return chosen.union(self.weights.hidden_matrices if self.options.matrices == "orthogonal" else ())

    def initial_numbers(self) -> dict[str, Number | list[Number]]:
        return {"since": 0, "progress": 0.0, "rates": [0.0] * self.weights.groups}

    def observe(self, gradients: Sequence[torch.Tensor | None], *, rates: Sequence[float], progress: float) -> None:
        self.average.average_(gradients, 1.0 - slow_decay(progress, self.options.beta3))
        self.since += 1
        self.progress = progress
        self.rates = list(rates)

    def step(self) -> None:
        if not self.applied:  # a jump begins; micro-corrections during it count towards the next one
            self.since = 0
        super().step()

    def write_direction(self, horizon: int, factors: Sequence[float], norms: Sequence[float] | None) -> None:
        assert self.direction is not None
        length = self.options.alpha * self.progress * min(self.since, self._most)
        sizes = [
            -self.rates[place] * length * factor for place, factor in zip(self.weights.group_of, factors, strict=True)
        ]
        if self._rule is _over_second_moment and self.direction.direct and self.options.caution == "none":
            self._write_in_place(sizes)
            numbers: Iterable[int] = self._orthogonal
        else:
            numbers = range(len(self.weights.parameters))
        groups = self.optimizer.param_groups
        for number in numbers:
            state = self.optimizer.state.get(self.weights.parameters[number], {})
            average = self.average.tensors[number].to(self.weights.device)
            rule = _orthogonal if number in self._orthogonal else self._rule
            step = rule(average, state, groups[self.weights.group_of[number]])
            if rule is not _orthogonal and self.options.caution != "none" and "exp_avg" in state:
                restrain_(step, state, kind=self.options.caution, decay=slow_decay(self.progress, self.options.beta3))
            self.direction.put(number, step.mul_(sizes[number]))

    def _write_in_place(self, sizes: Sequence[float]) -> None:
        """`_over_second_moment` for all other parameters of a group, in the buffer: no temporary, few kernels."""
        assert self.direction is not None
        for place, group in enumerate(self.optimizer.param_groups):
            numbers = [
                number
                for number, other in enumerate(self.weights.group_of)
                if other == place and number not in self._orthogonal
            ]
            states = {number: self.optimizer.state.get(self.weights.parameters[number]) for number in numbers}
            known = {number: state for number, state in states.items() if state}
            for number in states.keys() - known.keys():
                self.direction.put(number, None)
            if not known:
                continue
            name, sign = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq", -1.0 if group["maximize"] else 1.0
            steps = [self.direction.tensors[number] for number in known]
            corrections = _bias_corrections([state["step"] for state in known.values()], float(group["betas"][1]))
            eps: Sequence[Any] = [float(group["eps"])] * len(known)
            factors: Sequence[Any] = [sign * sizes[number] for number in known]
            if steps[0].device.type == "cpu":  # where tensors of one number take a third of the time of plain numbers
                eps, factors = list(torch.tensor(eps)), list(torch.tensor(factors))
            torch._foreach_copy_(steps, [local_part(state[name]) for state in known.values()])
            torch._foreach_div_(steps, corrections)
            torch._foreach_sqrt_(steps)
            torch._foreach_add_(steps, eps)
            torch._foreach_reciprocal_(steps)
            torch._foreach_mul_(steps, [self.average.tensors[number] for number in known])
            torch._foreach_mul_(steps, factors)


def _bias_corrections(steps: Sequence[torch.Tensor], beta2: float) -> list[torch.Tensor]:
    """1 - beta2^t for each t, without a wait for the device; each different t once if reading it is free."""
    if all(step.device.type == "cpu" for step in steps):
        known = {float(step): step for step in steps}
        corrections = {t: 1.0 - beta2**step for t, step in known.items()}
        return [corrections[float(step)] for step in steps]
    powers = list(torch._foreach_pow(beta2, list(steps)))
    torch._foreach_neg_(powers)
    torch._foreach_add_(powers, 1.0)
    return powers


def _rule(optimizer: torch.optim.Optimizer) -> Rule:
    """How this optimizer turns an average of gradients into a step.

    The exact class decides, not its base classes, because a subclass may do more: for example, a jump would move the
    weights that AdamWPrune keeps at zero.
    """
    kind = type(optimizer)
    if kind in _ADAMS:
        return _over_second_moment
    if kind in (torch.optim.SGD, StreamedSGD):
        return _as_it_is
    raise ConfigError(
        f"predictor slow_momentum has no rule for {kind.__name__}, only for Adam, AdamW, AdamWSPAM, AdEMAMix, Muon "
        "and SGD: use one of these, or predictor ema_nesterov"
    )


def _over_second_moment(average: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    """q / (sqrt(v / (1 - beta2^t)) + eps). Zero before the optimizer's first step."""
    if not state:
        return torch.zeros_like(average, dtype=torch.float32)
    square = local_part(state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"])
    correction = 1.0 - float(group["betas"][1]) ** state["step"]  # a tensor, so there is no wait for the device
    root = (square.to(average.device).float() / correction).sqrt_().add_(float(group["eps"]))
    step = torch.div(average, root, out=root)
    return step.neg_() if group["maximize"] else step


def _orthogonal(average: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    """q made orthogonal and scaled to |q| / |b| times Muon's step; b is the optimizer's own average of gradients."""
    if not state:
        return torch.zeros_like(average, dtype=torch.float32)
    own = state["momentum_buffer"] if group.get("muon") else state["exp_avg"]
    ratio = average.float().norm() / own.to(average.device).float().norm().clamp_min(1e-30)
    step = orthogonal_step(average).mul_(ratio)
    return step.neg_() if group["maximize"] else step


def _as_it_is(average: torch.Tensor, state: Mapping[str, Any], group: Mapping[str, Any]) -> torch.Tensor:
    step = average.float().clone() if average.dtype is torch.float32 else average.float()
    return step.neg_() if group["maximize"] else step
