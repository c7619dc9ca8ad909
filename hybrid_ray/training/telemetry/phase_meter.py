"""What a device was measured to do over time, shared out over the phases that a run was in meanwhile."""

import logging
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any

__all__ = ["IDLE_PERCENT", "IDLE_SECONDS", "PhaseMeter"]

log = logging.getLogger("hybrid_ray")

IDLE_PERCENT = 20.0  # mean utilisation below which a device that trains is called idle
IDLE_SECONDS = 10.0  # of training that this must last
OTHER = "other"  # between steps: evaluation, checkpoints


@dataclass(slots=True)
class _Share:
    """Of one phase. ``busy`` is percent times seconds."""

    seconds: float = 0.0
    joules: float = 0.0
    busy: float = 0.0


class PhaseMeter:
    """Joins two streams of one clock: spans of training, by phase, and intervals over which the device was measured.

    A measured interval (half a second) may hold many phases (a predicted step takes a millisecond), so what was
    measured in it is shared out by time: within one interval all phases are taken to draw the same power. Phases that
    last shorter than an interval are therefore told apart by their share of the time alone; longer ones by what they
    really drew.

    One thread tells of spans and another of intervals. Spans come when they end, so an interval waits until the spans
    in it are known; nothing else is kept.
    """

    def __init__(self) -> None:
        self._spans: deque[tuple[str, float, float]] = deque()
        self._known = float("-inf")  # spans are known up to here
        self._intervals: deque[tuple[float, float, float | None, float | None]] = deque()
        self._shares: defaultdict[str, _Share] = defaultdict(_Share)
        self._has_joules = self._has_busy = False
        self._window = _Share()  # training since idleness was last looked for
        self._warned = False

    def spent(self, phase: str, started: float, ended: float) -> None:
        """A step of ``phase`` took from ``started`` to ``ended``. Costs a microsecond: the loop calls it."""
        self._spans.append((phase, started, ended))
        self._known = ended

    def measured(self, started: float, ended: float, *, joules: float | None, utilisation: float | None) -> None:
        """The device drew ``joules`` and was busy ``utilisation`` percent of the time; None: it does not say."""
        self._intervals.append((started, ended, joules, utilisation))
        while self._intervals and self._intervals[0][1] <= self._known:
            self._share_out(*self._intervals.popleft())

    def finish(self) -> None:
        """No more spans will come: what is left waits no longer."""
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
        """Seconds of an interval by phase. Spans that end in it are forgotten."""
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
        """Warn once if the device did little while it should have trained."""
        window = self._window
        window.seconds += training
        window.busy += training * utilisation
        if window.seconds < IDLE_SECONDS:
            return
        mean, self._window = window.busy / window.seconds, _Share()
        if mean < IDLE_PERCENT and not self._warned:
            self._warned = True
            log.warning(
                "the GPU was busy %.0f %% of %.0f s of training: the micro-batch may be too small to fill it "
                "(train.micro_batch_size), data may come too slowly (part_seconds of the result), or work may be done "
                "on the CPU (train.threads, offloading)",
                mean,
                window.seconds,
            )
