"""Scores of probabilities, on cases where the answer is known."""

import math
import random

import pytest

from hybrid_ray.calibration import CalibrationCounts, auroc, brier, reliability


def test_a_reliability_curve_counts_every_event_once_and_puts_1_into_the_last_bin() -> None:
    low, high = reliability([0.0, 0.2, 0.5, 1.0], [False, True, True, True], bins=2)
    assert (low.count, low.probability, low.share) == (2, 0.1, 0.5)
    assert (high.count, high.probability, high.share) == (2, 0.75, 1.0)
    assert math.isnan(reliability([0.1], [True])[5].share)


def test_calibrated_forecasts_lie_on_the_diagonal() -> None:
    draw = random.Random(0)
    probabilities = [draw.random() for _ in range(20_000)]
    for bin_ in reliability(probabilities, [draw.random() < p for p in probabilities]):
        error = math.sqrt(bin_.probability * (1 - bin_.probability) / bin_.count)
        assert abs(bin_.share - bin_.probability) < 4 * error


def test_brier_of_certain_right_and_wrong_and_of_a_constant() -> None:
    assert brier([1.0, 0.0], [True, False]) == 0.0
    assert brier([1.0, 0.0], [False, True]) == 1.0
    assert brier([0.25] * 4, [True, False, False, False]) == pytest.approx(0.25 * 0.75)


def test_auroc_counts_pairs_and_half_of_ties() -> None:
    draw = random.Random(1)
    scores = [float(draw.randrange(5)) for _ in range(60)]
    happened = [draw.random() < 0.4 for _ in scores]
    pairs = [
        (first > second) + 0.5 * (first == second)
        for first, yes in zip(scores, happened, strict=True)
        for second, no in zip(scores, happened, strict=True)
        if yes and not no
    ]
    assert auroc(scores, happened) == pytest.approx(sum(pairs) / len(pairs))
    assert auroc([1.0] * 4, [True, False, True, False]) == 0.5
    assert auroc([math.inf, 0.0, -math.inf], [True, False, False]) == 1.0


def test_auroc_needs_both_kinds_of_events_and_numbers() -> None:
    assert auroc([0.1, 0.2], [True, True]) is None
    with pytest.raises(ValueError, match="NaN"):
        auroc([math.nan, 0.2], [True, False])


def test_a_probability_beyond_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probability is 1\.5 but must be between 0 and 1"):
        brier([1.5], [True])


def test_counts_in_constant_memory_score_like_the_events_themselves() -> None:
    draw = random.Random(1)
    events = [(probability, draw.random() < probability**2) for probability in (draw.random() for _ in range(3000))]
    counts, second = CalibrationCounts(), CalibrationCounts()
    for number, event in enumerate(events):
        (counts if number % 3 else second).add(*event)
    together = CalibrationCounts([*counts.rows, *second.rows])  # two runs
    probabilities, happened = zip(*events, strict=True)
    assert (together.count, together.happened) == (3000, sum(happened))
    assert len(together.rows) <= 100
    assert together.brier == pytest.approx(brier(probabilities, happened))
    assert together.auroc == pytest.approx(auroc(probabilities, happened), abs=1e-3)
    for found, exact in zip(together.reliability(), reliability(probabilities, happened), strict=True):
        assert (found.low, found.count, found.share) == (exact.low, exact.count, pytest.approx(exact.share))
        assert found.probability == pytest.approx(exact.probability)
    assert CalibrationCounts().auroc is None
    assert math.isnan(CalibrationCounts().brier)
