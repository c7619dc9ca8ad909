"""What tests share because it takes long to make: a small study that was really run, and two ranks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rank_pool import RankPool

from hybrid_ray.config import ConfirmConfig, DataConfig, HybridConfig, JobConfig, ModelConfig, SearchConfig, TrainConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.confirm import Candidate, confirm
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.evaluation.runner import Task, execute_here
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.run_result import MEASURES
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.study_store import StudyStore

KNOBS = ({"prediction_horizon": 2}, {"prediction_horizon": 5}, {"prediction_horizon": 1})


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def micro_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of a micro model on real text: every run trained by the one loop, kept by the store."""
    folder = tmp_path_factory.mktemp("micro")
    directory = folder / "studies" / "micro"
    job = JobConfig(
        name="micro",
        model=ModelConfig(preset="micro"),
        data=DataConfig(max_bytes=300_000, heldout_tokens=1024, cache_dir=str(folder / "cache")),
        train=TrainConfig(steps=40, batch_size=4, sequence_length=16, evaluations=4, calibration_steps=5),
        hybrid=HybridConfig(warmup_steps=10, full_steps=3, correct_steps=1, confidence_threshold=0.0),
        search=SearchConfig(trials=len(KNOBS)),
        confirm=ConfirmConfig(best=1, seeds=3),
    )
    write_atomic(directory / "job.yaml", dump_job(job).encode())
    store = StudyStore(directory)
    store.write_json("environment.json", {"python": "3", "packages": {"torch": "2"}})
    store.event("created")
    plain = execute_here(
        [
            Task(run=run, directory=directory / ("baseline" if length == 1.0 else f"frontier/{length:.2f}"))
            for length, run in frontier_runs(job).items()
        ]
    )
    scorer = TrialScorer.from_results(plain, job.objective)
    settings = [replace(job.hybrid, **knobs) for knobs in KNOBS]
    for number, hybrid in enumerate(settings):
        (result,) = execute_here([Task(run=job.run(hybrid=hybrid), directory=store.run_directory(number))])
        measured = scorer.final(result)
        store.add_trial(
            {
                "number": number,
                "state": "COMPLETE",
                "end": "finished",
                **{f"params_{name}": value for name, value in KNOBS[number].items()},
                **{name: measured[name] for name in MEASURES},
                "preset": None,
                "started": 0.0,
                "ended": 1.0,
            }
        )
    statistics = confirm(
        job,
        [Candidate(trial=1, hybrid=settings[1], params=KNOBS[1])],
        execute=execute_here,
        directory=directory / "confirmation",
        frontier=Frontier.from_results(plain, "test"),
    )
    store.write_json("confirmation.json", statistics)
    store.event("finished", note=None)
    store.close()
    return directory
