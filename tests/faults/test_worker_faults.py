"""Faults 1, 2, 7, 17, 24 and 25: a worker that is stopped, killed, asked to stop or raises, in every stage.

The injector follows the heartbeats of the runs, which have a run's name, step and process, and sends signals.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from micro_jobs import micro_job
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import ConfirmConfig, JobConfig, ObjectiveConfig, ResourcesConfig, SearchConfig, TrainConfig
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.ray_tune.cluster import ray_session
from hybrid_ray.ray_tune.runner import RayExecute
from hybrid_ray.report.load import load_study
from hybrid_ray.run_result import RunResult
from hybrid_ray.study.pipeline import run_study
from hybrid_ray.study.stopping import Budget, StopFlag
from hybrid_ray.training.telemetry.heartbeat import FOLDER

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    *RAY_WARNINGS,
]


@pytest.fixture(scope="module", autouse=True)
def ray_with_two_workers() -> Iterator[None]:
    with ray_session(JobConfig(resources=ResourcesConfig(workers=2))):
        yield


@contextmanager
def signals(folder: Path, *planned: tuple[str, signal.Signals], after: int = 30) -> Iterator[list[str]]:
    """Send each signal once, in this order, to a process whose run has that name, past step ``after``. It is in the
    middle of steps then: during an evaluation or a checkpoint, a hang would be noticed later.
    """
    sent: list[str] = []
    over = threading.Event()

    hit: set[int] = set()

    def follow() -> None:
        for name, number in planned:
            while not over.is_set() and not send(name, number):
                time.sleep(0.02)
            if not over.is_set():
                sent.append(f"{number.name} to {name}")

    def send(name: str, number: signal.Signals) -> bool:
        # No search through all folders: it fails when one of them, say a checkpoint's, is removed meanwhile.
        for path in (*folder.glob(f"{FOLDER}/*.json"), *folder.glob(f"studies/*/.ray/{FOLDER}/*.json")):
            try:
                beat = json.loads(path.read_text())
                there = name in beat["name"] and beat["step"] >= after and beat["interval"] is not None
                if there and beat["pid"] not in hit:
                    os.kill(beat["pid"], number)
                    hit.add(beat["pid"])
                    return True
            except (OSError, ValueError):  # the file, or the process, is gone
                continue
        return False

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    yield sent
    over.set()
    thread.join()


def slow_job(folder: Path, *, steps: int = 400, **sections: object) -> JobConfig:
    """Runs of some seconds, so that heartbeats can be followed, with a checkpoint after every evaluation."""
    train = TrainConfig(
        steps=steps, batch_size=8, sequence_length=32, evaluations=8, calibration_steps=5, learning_rate=1e-2,
        checkpoint_every=steps // 8,
    )  # fmt: skip
    return micro_job(folder, train=train, **sections)


def execute(job: JobConfig, folder: Path, *names: str) -> list[RunResult]:
    tasks = [Task(run=baseline(job.run()), directory=folder / name) for name in names]
    executor = RayExecute(job, concurrency=2, flag=StopFlag(), budget=Budget(job), storage=folder)
    return executor(tasks)


def test_a_run_that_is_stopped_killed_or_preempted_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    job = slow_job(tmp_path, resources=ResourcesConfig(hang_seconds=2.0), search=SearchConfig(max_failures=2))
    faults = (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM)
    with signals(tmp_path, *(("faulty", one) for one in faults)) as sent:
        faulty, calm = execute(job, tmp_path, "faulty", "calm")
    assert sent == [f"{one.name} to faulty" for one in faults]
    assert faulty.status == calm.status == "finished"
    assert faulty.heldout["test"].loss == calm.heldout["test"].loss
    assert faulty.steps == calm.steps == 400


def test_a_run_that_fails_more_often_than_allowed_fails_alone(tmp_path: Path) -> None:
    job = slow_job(tmp_path, search=SearchConfig(max_failures=1))
    with signals(tmp_path, *[("faulty", signal.SIGKILL)] * 2) as sent:
        faulty, calm = execute(job, tmp_path, "faulty", "calm")
    assert len(sent) == 2
    assert (faulty.status, calm.status) == ("failed", "finished")


def test_stopped_and_preempted_workers_of_frontier_and_trials_cost_a_study_nothing(tmp_path: Path) -> None:
    job = slow_job(
        tmp_path,
        resources=ResourcesConfig(max_concurrent=2, hang_seconds=2.0),
        search=SearchConfig(trials=2, scheduler="none"),
        objective=ObjectiveConfig(max_degradation=100.0),
        confirm=ConfirmConfig(best=0),  # confirmation and comparison run by RayExecute, as the frontier does
    )
    faults = [
        ("frontier", signal.SIGSTOP),
        ("trial 0", signal.SIGTERM),
        ("trial 0", signal.SIGSTOP),  # max_failures is 1: preemptions do not count
    ]
    with signals(tmp_path, *faults) as sent:
        outcome = run_study(job)
    assert sent == [f"{number.name} to {name}" for name, number in faults]
    assert outcome.status == "finished"
    study = load_study(outcome.directory)
    assert set(study.trials["state"]) == {"COMPLETE"}
    assert set(study.frontier["status"]) == {"finished"}


def test_a_stopped_rank_of_two_is_noticed_and_a_preempted_one_does_not_count(tmp_path: Path) -> None:
    job = slow_job(tmp_path, steps=160, resources=ResourcesConfig(workers=2, hang_seconds=3.0))
    faults = [("a worker of", signal.SIGSTOP), ("a worker of", signal.SIGTERM)]
    with signals(tmp_path, *faults, after=3) as sent:
        (result,) = execute(job, tmp_path, "run")
    assert len(sent) == 2
    assert (result.status, result.steps) == ("finished", 160), result.error
