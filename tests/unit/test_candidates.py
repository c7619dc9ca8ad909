"""Which trials are confirmed, first and when a study is extended."""

from dataclasses import replace
from typing import Any

from hybrid_ray.config import ConfirmConfig, JobConfig
from hybrid_ray.study.candidates import best_candidates

JOB = replace(JobConfig(), confirm=ConfirmConfig(best=2))


def row(number: int, score: float, **changes: Any) -> dict[str, Any]:
    measured = {"speedup": score, "degradation": 0.0, "objective": score, "score": score}
    measured |= {"loss": 3.0 - score, "real_steps": 500}
    ended = {"state": "COMPLETE", "diverged": 0, "inert": 0, "params_prediction_horizon": number + 1}
    return {"number": number, **measured, **ended, **changes}


def test_what_was_confirmed_before_is_confirmed_again_beside_the_new_best() -> None:
    rows = [row(0, 1.1), row(1, 1.2), row(2, 1.3), row(3, 1.4), row(4, 9.0, inert=1)]
    assert [one.trial for one in best_candidates(rows[:2], JOB)] == [1, 0]
    found = best_candidates(rows, JOB, before=[1, 0])
    assert [one.trial for one in found] == [3, 2, 0, 1]
    assert found[-1].hybrid.prediction_horizon == 2
    assert [one.trial for one in best_candidates(rows, JOB, before=[2])] == [3, 2]


def test_two_settings_that_trained_the_same_weights_are_one_candidate() -> None:
    rows = [row(0, 1.1), row(1, 1.3), row(2, 1.29, loss=1.7), row(3, 1.2, loss=1.7, real_steps=499)]
    assert [one.trial for one in best_candidates(rows, JOB)] == [1, 3]
