"""Are forecast probabilities right? Reliability curve, Brier score and AUROC. Pure functions of numbers.

``probabilities[i]`` (or ``scores[i]``) was forecast for event i, and ``happened[i]`` says whether it happened.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bin", "auroc", "brier", "reliability"]


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


def _check(probabilities: Sequence[float]) -> None:
    for probability in probabilities:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability is {probability} but must be between 0 and 1")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
