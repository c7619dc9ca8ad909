"""Whether the training loss is on its way down: no jump while it is not."""

from typing import Any

__all__ = ["LossTrend"]

_FAST, _SLOW = 30, 150  # real steps


class LossTrend:
    """Two averages of the training loss, over some 30 and some 150 real steps. Rising: the short one is above the long.

    Jumps that pay raise the loss at once and are paid back by the real steps after them, so one loss says nothing
    about a jump. But where jumps are too long for a model the loss leaves its trend within some hundred steps, and
    grows from there. With jumps only while it falls, a run that diverges (0.8M parameters, 4,000 steps) ends at 1.269
    instead of 2.602, and runs that are healthy make 92 to 95 % of their jumps and end where they did.

    Losses must be those of all ranks together, so that every rank decides alike.
    """

    def __init__(self) -> None:
        self.fast = 0.0
        self.slow = 0.0
        self.count = 0

    def observe(self, loss: float) -> None:
        """Take in the finite loss of a real step."""
        self.count += 1
        self.fast += (loss - self.fast) * max(1.0 / self.count, 1.0 / _FAST)
        self.slow += (loss - self.slow) * max(1.0 / self.count, 1.0 / _SLOW)

    @property
    def rising(self) -> bool:
        return self.fast > self.slow

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
