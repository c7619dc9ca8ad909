"""Whether to predict at each decision: always, by confidence, or at random."""

import random

from hybrid_ray.config import HybridConfig

__all__ = ["Gate"]


class Gate:
    """Decides whether to predict, at each decision of a run.

    - ``always``: predict at every decision.
    - ``confidence``: predict if the confidence reaches the threshold.
    - ``random``: predict with probability ``gate_rate``. This is the control for another gate: it predicts as often but
      chooses the decisions at random.

    With ``trust: loss_trend`` no gate opens while the training loss rises (`LossTrend`).

    The random draw depends only on the seed and the number of the decision, so all ranks draw the same, and a restored
    run continues with the same draws.
    """

    def __init__(self, config: HybridConfig, *, seed: int = 0) -> None:
        self._kind = config.gate_kind
        self._rate = config.gate_rate
        self._trusts = config.trust_kind == "off"
        self._seed = seed

    def opens(self, *, confidence: float, threshold: float, decision: int, rising: bool = False) -> bool:
        """Whether to predict now.

        Args:
            threshold: the configured threshold plus what recoveries have added to it.
            decision: number of the decision in the run.
            rising: whether the training loss is rising.
        """
        if rising and not self._trusts:
            return False
        if self._kind == "always":
            return True
        if self._kind == "random":
            return random.Random(f"{self._seed} {decision}").random() < self._rate
        return confidence >= threshold
