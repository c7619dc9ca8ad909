"""Whether to predict, at each chance to: always, by confidence, or by lot."""

import random

from hybrid_ray.config import HybridConfig

__all__ = ["Gate"]


class Gate:
    """Opens at a share of a run's decisions.

    - ``always``: at all of them.
    - ``confidence``: where confidence reaches the threshold.
    - ``random``: with probability ``gate_rate``. The control of any other gate: what opening so often brings by itself.

    With ``trust: loss_trend`` none of them opens while the training loss rises (`LossTrend`).

    The lot depends on the seed and the number of the decision alone, so ranks draw alike and a restored run goes on
    with its own.
    """

    def __init__(self, config: HybridConfig, *, seed: int = 0) -> None:
        self._kind = config.gate_kind
        self._rate = config.gate_rate
        self._trusts = config.trust_kind == "off"
        self._seed = seed

    def opens(self, *, confidence: float, threshold: float, decision: int, rising: bool = False) -> bool:
        """Whether to predict now.

        Args:
            threshold: the one configured, and what recoveries have added to it.
            decision: number of the decision in the run.
            rising: whether the training loss is.
        """
        if rising and not self._trusts:
            return False
        if self._kind == "always":
            return True
        if self._kind == "random":
            return random.Random(f"{self._seed} {decision}").random() < self._rate
        return confidence >= threshold
