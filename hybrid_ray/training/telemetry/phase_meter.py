"""Divides measurements of a device over time among the phases of a run."""

import logging
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

__all__ = ["IDLE_PERCENT", "IDLE_SECONDS", "PhaseMeter"]

log = logging.getLogger("hybrid_ray")

IDLE_PERCENT = 20.0  # mean utilisation below which a training device counts as idle
IDLE_SECONDS = 10.0  # seconds of training over which it is averaged
OTHER = "other"  # between steps: evaluation, checkpoints


@dataclass(slots=True)
class _Share:
    """The share of one phase. ``busy`` is utilisation in percent times seconds."""

    seconds: float = 0.0
    joules: float = 0.0
    busy: float = 0.0


class PhaseMeter:
    """Combines two streams with one clock: spans of training by phase, and intervals in which the device was measured.

    A measured interval (half a second) may contain many phases (a predicted step takes a millisecond), so its
    measurement is divided in proportion to time, as if all phases in it drew the same power. Phases shorter than an
    interval are therefore not measured individually; longer ones are.

    One thread reports spans and another intervals. Spans arrive when they end, so an interval waits until its spans are
    known.
    """

    def __init__(self) -> None:
        self._spans: deque[tuple[str, float, float]] = deque()
        self._known = float("-inf")  # time up to which spans are known
        self._intervals: deque[tuple[float, float, float | None, float | None]] = deque()
        self._shares: defaultdict[str, _Share] = defaultdict(_Share)
        self._has_joules = self._has_busy = False
        self._window = _Share()  # training since the last check for idleness
        self._warned = False

    def spent(self, phase: str, started: float, ended: float) -> None:
        """Record a step of ``phase`` from ``started`` to ``ended``. Takes about a microsecond of the training loop."""
        self._spans.append((phase, started, ended))
        self._known = ended

    def measured(self, started: float, ended: float, *, joules: float | None, utilisation: float | None) -> None:
        """Record that the device drew ``joules`` and was busy ``utilisation`` percent of the time; None: unknown."""
        self._intervals.append((started, ended, joules, utilisation))
        while self._intervals and self._intervals[0][1] <= self._known:
            self._share_out(*self._intervals.popleft())

    def finish(self) -> None:
        """Process the remaining intervals: no more spans will come."""
        while self._intervals:
            self._share_out(*self._intervals.popleft())

    def summary(self) -> dict[str, Any]:
        """Totals, and the same by phase: seconds, joules, mean watts, mean utilisation (percent)."""
        whole = _Share()
        for share in self._shares.values():
            whole.seconds += share.seconds
            whole.joules += share.joules
            whole.busy += share.busy
        if not whole.seconds:
            return {}
        totals = {f"gpu_{name}": value for name, value in self._told(whole).items()}
        return totals | {"gpu_phases": {phase: self._told(share) for phase, share in self._shares.items()}}

    def _told(self, share: _Share) -> dict[str, float]:
        told = {"seconds": share.seconds}
        if self._has_joules:
            told |= {"energy_joules": share.joules, "mean_power_watts": share.joules / share.seconds}
        if self._has_busy:
            told["mean_utilisation_percent"] = share.busy / share.seconds
        return told

    def _share_out(self, started: float, ended: float, joules: float | None, utilisation: float | None) -> None:
        length = ended - started
        if length <= 0:
            return
        self._has_joules |= joules is not None
        self._has_busy |= utilisation is not None
        seconds = self._seconds_in(started, ended)
        training = sum(seconds.values())
        seconds[OTHER] += max(0.0, length - training)
        for phase, part in seconds.items():
            if part > 0:
                share = self._shares[phase]
                share.seconds += part
                share.joules += (joules or 0.0) * part / length
                share.busy += (utilisation or 0.0) * part
        if utilisation is not None:
            self._look_for_idleness(training, utilisation)

    def _seconds_in(self, started: float, ended: float) -> defaultdict[str, float]:
        """Seconds of an interval by phase. Removes the spans that end in it."""
        seconds: defaultdict[str, float] = defaultdict(float)
        while self._spans:
            phase, first, last = self._spans[0]
            if first >= ended:
                break
            seconds[phase] += max(0.0, min(last, ended) - max(first, started))
            if last > ended:
                break
            self._spans.popleft()
        return seconds

    def _look_for_idleness(self, training: float, utilisation: float) -> None:
        """Warn once if the device was mostly idle during training."""
        window = self._window
        window.seconds += training
        window.busy += training * utilisation
        if window.seconds < IDLE_SECONDS:
            return
        mean, self._window = window.busy / window.seconds, _Share()
        if mean < IDLE_PERCENT and not self._warned:
            self._warned = True
            log.warning(
                "the GPU was busy %.0f %% of %.0f s of training: the micro-batch may be too small "
                "(train.micro_batch_size), data loading too slow (part_seconds in result.json), or work may be done on "
                "the CPU (train.threads, offloading)",
                mean,
                window.seconds,
            )
