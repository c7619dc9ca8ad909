"""Are forecast probabilities right? Reliability curve, Brier score and AUROC. Pure functions of numbers.

``probabilities[i]`` (or ``scores[i]``) was forecast for event i, and ``happened[i]`` says whether it happened.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Bin", "CalibrationCounts", "auroc", "brier", "reliability"]

_FINE = 100  # cells of `CalibrationCounts`


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """The events whose probability lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    count: int
    probability: float  # mean forecast; NaN in an empty bin
    share: float  # of these events that happened; NaN in an empty bin


def reliability(probabilities: Sequence[float], happened: Sequence[bool], *, bins: int = 10) -> list[Bin]:
    """The reliability curve: ``bins`` bins of equal width over [0, 1], empty ones included. Calibrated forecasts have
    share = probability in every bin, up to a standard error of sqrt(share (1 - share) / count).

    Raises:
        ValueError: a probability is not in [0, 1], or the lengths differ.
    """
    _check(probabilities)
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for probability, event in zip(probabilities, happened, strict=True):
        members[min(bins - 1, int(probability * bins))].append((probability, event))
    return [
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            count=len(inside),
            probability=_mean([probability for probability, _ in inside]),
            share=_mean([float(event) for _, event in inside]),
        )
        for number, inside in enumerate(members)
    ]


def brier(probabilities: Sequence[float], happened: Sequence[bool]) -> float:
    """Brier score: mean of (probability - happened)^2, with happened as 0 or 1. Lower is better (Brier 1950).

    Always forecasting the share s of events that happen gives s (1 - s): a model must be below that. NaN if there are
    no events.

    Raises:
        ValueError: a probability is not in [0, 1], or the lengths differ.
    """
    _check(probabilities)
    return _mean([(probability - event) ** 2 for probability, event in zip(probabilities, happened, strict=True)])


def auroc(scores: Sequence[float], happened: Sequence[bool]) -> float | None:
    """P(score of an event that happened > score of one that did not), where a tie counts 1/2. 0.5 is chance.

    With p events that happened, n that did not and ranks from 1 (ties get their mean rank), it is
    (sum of the ranks of the p - p (p + 1) / 2) / (p n) (Mann and Whitney 1947). None unless both kinds exist.

    Raises:
        ValueError: a score is NaN, or the lengths differ.
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN but a ranking needs numbers: leave these events out")
    ordered = sorted(zip(scores, happened, strict=True), key=lambda pair: pair[0])
    positives = sum(event for _, event in ordered)
    negatives = len(ordered) - positives
    if not positives or not negatives:
        return None
    ranks, start = 0.0, 0
    while start < len(ordered):
        end = start
        while end < len(ordered) and ordered[end][0] == ordered[start][0]:
            end += 1
        ranks += sum(event for _, event in ordered[start:end]) * (start + 1 + end) / 2
        start = end
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


class CalibrationCounts:
    """Forecasts and outcomes in constant memory: sums over the events of each hundredth of the probability.

    Brier score and mean probabilities are exact. For AUROC, two events of the same hundredth are tied.
    """

    def __init__(self, rows: Iterable[Sequence[float]] = ()) -> None:
        """Start with stored ``rows``, of one run or of several one after another."""
        self._cells: dict[int, list[float]] = {}
        for cell, *sums in rows:
            self._add(int(cell), sums)

    def add(self, probability: float, happened: bool) -> None:
        """Count one event.

        Raises:
            ValueError: the probability is not in [0, 1].
        """
        _check([probability])
        cell = min(_FINE - 1, int(probability * _FINE))
        self._add(cell, (1, int(happened), probability, (probability - happened) ** 2))

    def _add(self, cell: int, sums: Sequence[float]) -> None:
        before = self._cells.get(cell, [0, 0, 0.0, 0.0])
        self._cells[cell] = [a + b for a, b in zip(before, sums, strict=True)]

    @property
    def rows(self) -> list[list[float]]:
        """Plain numbers for JSON, for each hundredth with events: its number, events, events that happened, sum of the
        probabilities, sum of (probability - happened)^2.
        """
        return [[cell, *self._cells[cell]] for cell in sorted(self._cells)]

    @property
    def count(self) -> int:
        return int(sum(cell[0] for cell in self._cells.values()))

    @property
    def happened(self) -> int:
        return int(sum(cell[1] for cell in self._cells.values()))

    @property
    def brier(self) -> float:
        """See `brier`."""
        return math.fsum(cell[3] for cell in self._cells.values()) / self.count if self._cells else math.nan

    @property
    def auroc(self) -> float | None:
        """See `auroc`."""
        events = [
            (float(number), bool(event))
            for number, (count, happened, *_) in self._cells.items()
            for event, times in ((1, happened), (0, count - happened))
            for _ in range(int(times))
        ]
        return auroc([score for score, _ in events], [event for _, event in events])

    def reliability(self, *, bins: int = 10) -> list[Bin]:
        """See `reliability`. ``bins`` divides 100."""
        found = []
        for number in range(bins):
            cells = [sums for cell, sums in self._cells.items() if cell * bins // _FINE == number]
            count, happened, total, _ = map(math.fsum, zip(*cells, strict=True)) if cells else (0.0,) * 4
            found.append(
                Bin(
                    low=number / bins,
                    high=(number + 1) / bins,
                    count=int(count),
                    probability=total / count if count else math.nan,
                    share=happened / count if count else math.nan,
                )
            )
        return found


def _check(probabilities: Sequence[float]) -> None:
    for probability in probabilities:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability is {probability} but must be between 0 and 1")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
