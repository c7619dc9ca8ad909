"""Which recoveries are carried out, and what they impose on the cycles to come."""

from typing import Any

from hybrid_ray.method.guard.divergence import Recovery

__all__ = ["Backoff", "carried_out", "ends_cycle"]

_RAISE = 0.1
_LEAST_RATIO = 1.0 / 16.0


def ends_cycle(recovery: Recovery) -> bool:
    """Whether the next phase is Full."""
    return recovery not in (Recovery.CONTINUE, Recovery.REDUCE_PREDICT_RATIO)


def carried_out(advised: Recovery, *, applied: bool, finite: bool, free: bool) -> Recovery:
    """What is done of what the monitor advises.

    Leaving a bad batch out has nothing to do with predicting. So it is done in every arm, and arms differ in their
    predictions alone. The other recoveries change what is predicted: they are for runs that decide that themselves.

    Args:
        advised: by the monitor.
        applied: whether the last prediction can still be taken back. If the next is planned already, in its place, a
            rollback is no more than a batch left out.
        finite: whether all numbers are. What is not can only be refused, in any arm, and in the end ends the run.
        free: whether the run decides for itself: it predicts, and follows no recording.
    """
    if advised is Recovery.ROLLBACK and not applied:
        return Recovery.SKIP_BATCH
    plain = advised is Recovery.SKIP_BATCH or (advised is Recovery.ABORT and not finite)
    return advised if free or plain else Recovery.CONTINUE


class Backoff:
    """A shorter horizon and a higher threshold than configured. It wears off: a healthy cycle gives half of it back.

    Args:
        gated: whether a threshold decides. If not, what would raise it shortens the horizon.
    """

    def __init__(self, *, gated: bool = True) -> None:
        self._gated = gated
        self.ratio = 1.0  # of the configured horizon
        self.raised = 0.0  # added to the configured threshold

    def observe(self, recovery: Recovery) -> None:
        if recovery is Recovery.RAISE_THRESHOLD and self._gated:
            self.raised += _RAISE
        elif recovery in (Recovery.REDUCE_PREDICT_RATIO, Recovery.RAISE_THRESHOLD):
            self.ratio = max(_LEAST_RATIO, self.ratio / 2.0)

    def threshold(self, configured: float) -> float:
        """The confidence that is asked for now. Never above 1, which perfect agreement still reaches."""
        return min(1.0, configured + self.raised)

    def relax(self) -> None:
        """A cycle went well."""
        self.ratio = min(1.0, self.ratio * 2.0)
        self.raised = self.raised / 2.0 if self.raised > 0.01 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "raised": self.raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
