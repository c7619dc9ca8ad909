"""What recoveries impose on the cycles to come. It wears off: every healthy cycle gives half of it back."""

from typing import Any

from hybrid_ray.hybrid.divergence import Recovery

__all__ = ["Restraint", "ends_cycle"]

_RAISE = 0.1
_LEAST_RATIO = 1.0 / 16.0


def ends_cycle(recovery: Recovery) -> bool:
    """Whether the next phase is Full."""
    return recovery not in (Recovery.CONTINUE, Recovery.REDUCE_PREDICT_RATIO)


class Restraint:
    """A shorter horizon and a higher threshold than configured."""

    def __init__(self) -> None:
        self.ratio = 1.0  # of the configured horizon
        self.raised = 0.0  # added to the configured threshold

    def observe(self, recovery: Recovery) -> None:
        if recovery is Recovery.REDUCE_PREDICT_RATIO:
            self.ratio = max(_LEAST_RATIO, self.ratio / 2.0)
        elif recovery is Recovery.RAISE_THRESHOLD:
            self.raised += _RAISE

    def threshold(self, configured: float) -> float:
        """The confidence that is asked for now. Never above 1, which perfect agreement still reaches."""
        return min(1.0, configured + self.raised)

    def relax(self) -> None:
        """A cycle went well."""
        self.ratio = min(1.0, self.ratio * 2.0)
        self.raised = self.raised / 2.0 if self.raised > 0.01 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
