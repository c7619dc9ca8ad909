"""Which recoveries are carried out, and how they restrict the following cycles."""

from typing import Any

from hybrid_ray.method.guard.divergence import Recovery

__all__ = ["Backoff", "carried_out", "ends_cycle"]

_RAISE = 0.1
_LEAST_RATIO = 1.0 / 16.0


def ends_cycle(recovery: Recovery) -> bool:
    """Whether the next phase is Full."""
    return recovery not in (Recovery.CONTINUE, Recovery.REDUCE_PREDICT_RATIO)


def carried_out(advised: Recovery, *, applied: bool, finite: bool, free: bool) -> Recovery:
    """Choose the recovery to carry out from the one that the monitor advises.

    Skipping a bad batch is independent of predicting, so every arm of a comparison does it, and arms differ only in
    their predictions. The other recoveries change what is predicted, so only runs that decide this themselves use them.

    Args:
        advised: the monitor's advice.
        applied: whether the last prediction can still be undone. If the next plan has already replaced it, a rollback
            only skips the batch.
        finite: whether all numbers are finite. Non-finite numbers are refused in every arm, and an advised abort is
            then carried out in every arm.
        free: whether the run decides its own predictions: it predicts and does not follow a recording.
    """
    if advised is Recovery.ROLLBACK and not applied:
        return Recovery.SKIP_BATCH
    plain = advised is Recovery.SKIP_BATCH or (advised is Recovery.ABORT and not finite)
    return advised if free or plain else Recovery.CONTINUE


class Backoff:
    """A shorter horizon and a higher threshold than configured. Each healthy cycle undoes half of the change.

    Args:
        gated: whether a confidence threshold decides. If not, RAISE_THRESHOLD shortens the horizon instead.
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
        """The confidence required now. It is at most 1, which perfect agreement still reaches."""
        return min(1.0, configured + self.raised)

    def relax(self) -> None:
        """Undo half of the change after a healthy cycle."""
        self.ratio = min(1.0, self.ratio * 2.0)
        self.raised = self.raised / 2.0 if self.raised > 0.01 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "raised": self.raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
