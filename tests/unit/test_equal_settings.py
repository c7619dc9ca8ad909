"""Settings that train the same weights are recognised, and no others: checked against real training."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from micro_runs import CYCLES, micro_run

from hybrid_ray.config import HybridConfig
from hybrid_ray.evaluation.equal_settings import TrainedSettings, effective, equal_thresholds
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.parquet import read_steps
from hybrid_ray.training.loop import train

ALWAYS = replace(CYCLES, gate="always")
SLOW = HybridConfig(predictor="slow_momentum", warmup_steps=6, full_steps=4, correct_steps=2, prediction_horizon=3)


def trained(hybrid: HybridConfig, directory: Path, steps: int = 40) -> RunResult:
    return train(micro_run(hybrid=hybrid, steps=steps), directory=directory)


def losses(result: RunResult) -> list[float]:
    return [evaluation.loss for evaluation in result.curve]


@pytest.mark.parametrize(
    ("hybrid", "change", "same"),
    [
        (CYCLES, {"correction_interval": 3}, True),  # as long as the horizon: never inside it
        (CYCLES, {"correction_interval": 2}, False),
        (ALWAYS, {"confidence_threshold": 0.9}, True),
        (ALWAYS, {"gate_rate": 0.1}, True),
        (SLOW, {"couple_lr": False}, True),
        (SLOW, {"prediction_horizon": 2}, False),  # as long a jump, but more real steps in the run
    ],
)
def test_settings_are_equal_if_and_only_if_they_train_the_same_weights(
    hybrid: HybridConfig, change: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    changed = replace(hybrid, **change)
    runs = [trained(one, tmp_path / str(number)) for number, one in enumerate((hybrid, changed))]
    assert (losses(runs[0]) == losses(runs[1])) is same
    assert (effective(hybrid) == effective(changed)) is same


def test_what_is_left_to_the_predictor_equals_its_value_given_by_hand() -> None:
    by_hand = HybridConfig(gate="confidence", trust="off", first_fraction=0.16, off_fraction=0.24)
    assert effective(HybridConfig()) == effective(by_hand)
    assert effective(HybridConfig()) != effective(replace(by_hand, gate="random"))


def test_with_a_users_own_predictor_only_identical_settings_are_equal() -> None:
    """It may read any setting."""
    own = replace(ALWAYS, predictor={"name": "mine:Predictor"})
    assert effective(own) == effective(replace(own))
    assert effective(own) != effective(replace(own, correction_interval=3))
    assert effective(own) != effective(replace(own, confidence_threshold=0.9))


def test_thresholds_are_equal_exactly_between_the_confidences_of_a_finished_run(tmp_path: Path) -> None:
    shut = replace(CYCLES, gate="confidence", confidence_threshold=0.999, explore=0.0)
    trained(shut, tmp_path / "shut", steps=90)
    seen = [row["confidence"] for row in read_steps(tmp_path / "shut")[CYCLES.warmup_steps + 3 :]]
    threshold = next(one for place, one in enumerate(seen) if one > max(seen[:place], default=math.inf))
    gated = replace(shut, confidence_threshold=threshold)  # the first cycles do not predict, a later one does
    first = trained(gated, tmp_path / "0", steps=90)
    confidences = [row["confidence"] for row in read_steps(tmp_path / "0")]
    found = equal_thresholds(gated, first, confidences)
    assert found is not None
    refused, opened = found
    assert 0.0 < refused < threshold <= opened < 1.0  # some cycles predict, some do not
    search = TrainedSettings(lambda params: replace(gated, **params), directory=lambda number: tmp_path / str(number))
    search.add(0, {})
    thresholds = {opened: True, math.nextafter(opened, 1): False, math.nextafter(refused, 1): True, refused: False}
    for number, (threshold, same) in enumerate(thresholds.items(), 1):
        other = trained(replace(gated, confidence_threshold=threshold), tmp_path / str(number), steps=90)
        assert (other.replay.phases == first.replay.phases) is same
        assert (losses(other) == losses(first)) is same
        assert (search.equal({"confidence_threshold": threshold}) == 0) is same
    assert search.equal({"confidence_threshold": opened, "prediction_horizon": 2}) is None


def test_a_threshold_above_every_confidence_is_one_trial_with_any_other(tmp_path: Path) -> None:
    shut = replace(CYCLES, gate="confidence", confidence_threshold=0.999, explore=0.0)
    result = trained(shut, tmp_path / "0")
    assert result.predicted_steps == 0
    search = TrainedSettings(lambda params: replace(shut, **params), directory=lambda number: tmp_path / str(number))
    search.add(0, {})
    assert search.equal({"confidence_threshold": 0.99}) == 0
    assert search.equal({"confidence_threshold": 0.0}) is None


@pytest.mark.parametrize("event", ["raise_threshold", "skip_batch", "parameters changed"])
def test_a_run_whose_threshold_or_cycles_changed_shows_nothing(event: str, tmp_path: Path) -> None:
    result = trained(CYCLES, tmp_path)
    confidences = [row["confidence"] for row in read_steps(tmp_path)]
    assert equal_thresholds(replace(CYCLES, gate="confidence"), result, confidences) is not None
    disturbed = replace(result, statistics={**result.statistics, "events": {event: 1}})
    assert equal_thresholds(replace(CYCLES, gate="confidence"), disturbed, confidences) is None
    assert equal_thresholds(replace(CYCLES, gate="random"), result, confidences) is None
