"""Whether to predict at each decision, and how far."""

import random

from hybrid_ray.config import HybridConfig
from hybrid_ray.method.gate.payback import JUMPS, Payback

__all__ = ["Gate"]


class Gate:
    """Chooses a jump at each decision of a run.

    - ``always``: the full jump at every decision.
    - ``confidence``: the full jump if the confidence in it reaches the threshold; with ``horizon_mode: adaptive`` the
      largest of the full jump, its half and its quarter for which it does.
    - ``random``: the full jump with probability ``gate_rate``. This is the control for another gate: it predicts as
      often but chooses the decisions at random.

    With ``horizon_mode: linucb`` a bandit proposes the length of the jump, and the gate confirms or refuses it.

    A share of the decisions (``explore``) is made at random: no jump, or a half or a quarter of it. Otherwise nothing
    would show what happens without the jump that the confidence recommends, or with the one that it advises against.

    With ``trust: loss_trend`` no gate opens while the training loss rises (`LossTrend`).

    Random draws depend only on the seed and the number of the decision, so all ranks draw the same, and a restored run
    continues with the same draws.
    """

    def __init__(self, config: HybridConfig, *, seed: int = 0) -> None:
        self._config = config
        self._kind = config.gate_kind
        self._trusts = config.trust_kind == "off"
        self._seed = seed

    def choose(self, payback: Payback, *, threshold: float, decision: int, rising: bool) -> float:
        """The jump to make now, as a share of the full one; 0: none.

        Args:
            payback: gives the confidence in each jump.
            threshold: the configured threshold plus what recoveries have added to it.
            decision: number of the decision in the run.
            rising: whether the training loss is rising.
        """
        config = self._config
        if rising and not self._trusts:
            return 0.0
        if config.exploration > 0.0:
            draw = random.Random(f"{self._seed} explore {decision}")
            if draw.random() < config.exploration:
                return draw.choice((0.0, *JUMPS[1:]))
        jumps = JUMPS if config.horizon_mode == "adaptive" else JUMPS[:1]
        if config.horizon_mode == "linucb":
            jumps = (payback.most_gainful(),)
        if self._kind == "random":
            return jumps[0] if random.Random(f"{self._seed} {decision}").random() < config.gate_rate else 0.0
        if self._kind == "always":
            return jumps[0]
        return next((jump for jump in jumps if jump and payback.confidence_in(jump) >= threshold), 0.0)
