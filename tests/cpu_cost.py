"""What a piece of work costs, in a unit that a busy or slow machine does not change."""

import time
from collections.abc import Callable

__all__ = ["cost"]


def cost(work: Callable[[], object], *, times: int = 3) -> float:
    """Processor time of ``work``, relative to `_reference` in the same process; the lowest of some pairs.

    A neighbour on the same core slows both sides of a pair. The reference takes 15 to 30 ms.
    """
    return min(_seconds(work) / _seconds(_reference) for _ in range(times))


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _reference() -> float:
    """A fixed amount of plain Python."""
    total, seen = 0.0, dict[int, float]()
    for number in range(100_000):
        seen[number % 97] = total
        total = (total + 0.5 * seen.get(number % 89, 1.0) + 1.0) % 1000.0
    return total
