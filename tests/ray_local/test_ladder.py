"""A ladder of two micro models, searched for net speedup on a real local Ray, stopped and resumed."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import ConfirmConfig, FrontierConfig, LadderConfig, ObjectiveConfig, SearchConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.ladder.climb import climb
from hybrid_ray.ladder.results import load_ladder
from hybrid_ray.ray_tune.optuna_storage import open_study
from hybrid_ray.report.load import load_study
from hybrid_ray.study.pipeline import run_study

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    *RAY_WARNINGS,
]


def test_a_ladder_is_stopped_by_a_signal_and_goes_on_with_what_it_has(tmp_path: Path, shared_folder: Path) -> None:
    job = replace(
        micro_job(shared_folder),
        name="climb",
        studies_dir=str(tmp_path),
        objective=ObjectiveConfig(mode="net", max_degradation=100.0),
        search=SearchConfig(trials=3, scheduler="none"),
        frontier=FrontierConfig(lengths=(0.4, 0.55, 0.7, 0.85, 1.0)),
        confirm=ConfirmConfig(best=0),
        ladder=LadderConfig(
            rungs={"small": {}, "large": {"model.preset": "pico"}}, best=2, others=0, lr_factors=(1.0, 2.0)
        ),
    )
    with pytest.raises(ConfigError, match="use hybrid-ray ladder"):
        run_study(job)

    def stop_before_the_second_rung(text: str) -> None:
        if "large begins" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = climb(job, say=stop_before_the_second_rung)
    assert stopped.status == "stopped"
    assert f"hybrid-ray resume {stopped.directory}" in stopped.text
    study = load_study(stopped.directory / "small")
    small, told = study.trials, open_study(stopped.directory / "small", study.job).trials
    assert [trial.value for trial in told] == small["objective"].tolist()
    assert small["objective"].max() == study.winner["objective"]
    heading = list(told[0].intermediate_values.values())
    assert len(heading) == 4
    assert heading[-1] == told[0].value
    assert load_ladder(stopped.directory).finished is False

    outcome = climb(job, say=lambda text: None)
    ladder = load_ladder(outcome.directory)
    assert outcome.status == "finished"
    assert ladder.finished
    assert ladder.rungs[0].study.trials["ended"].equals(small["ended"])
    large = ladder.rungs[1]
    assert list(large.study.trials["preset"]) == list(large.origins)
    rate = large.transfer["rate"]
    assert {one["value"] for one in rate["tried"]} == {
        factor * ladder.rungs[0].study.job.train.learning_rate for factor in (1.0, 2.0)
    }
    assert large.study.job.train.learning_rate == min(rate["tried"], key=lambda one: one["loss"])["value"]
    assert (large.study.baseline["status"] == "finished").all()
    assert "net speedup" in outcome.text
    assert not list(outcome.directory.rglob(".ray"))
