"""What counts as a hang, with a clock of the test's own; and which failures of a run count."""

import json
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError

from hybrid_ray.ray_tune.recovery.watchdog import Watchdog
from hybrid_ray.run_result import StepRecord
from hybrid_ray.training.ray_worker import MOST_PREEMPTIONS, Attempts, was_preempted
from hybrid_ray.training.telemetry.heartbeat import FOLDER, Heartbeat


class Watched:
    """A watchdog over one run of 60 steps and 4 evaluations, and a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now, self.ended = 0.0, list[dict[str, Any]]()
        self.dog = Watchdog(folder, least=60.0, end=self.ended.append, clock=lambda: self.now)
        self.beat = Heartbeat(folder / FOLDER, micro_job(folder).run(), name="trial 3", node="here")

    def step(self, number: int, *, seconds: float) -> None:
        self.beat.step(
            StepRecord(
                step=number, phase="full", predicted=False, loss=1.0, confidence=0.0, learning_rate=0.1,
                grad_norm=1.0, seconds=seconds,
            )
        )  # fmt: skip

    def wait(self, seconds: int) -> bool:
        """Whether the run was ended within so many seconds, of which each has its check."""
        for _ in range(seconds):
            self.now += 1.0
            self.dog.check()
        return bool(self.ended)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def step_now(watched: Watched, number: int, *, seconds: float) -> None:
    watched.beat._written = 0.0  # as if a second had passed since the last one
    watched.step(number, seconds=seconds)


def test_a_run_without_a_step_for_the_least_time_is_ended_once(watched: Watched) -> None:
    with watched.beat:
        step_now(watched, 3, seconds=0.01)
        assert not watched.wait(58)
        step_now(watched, 4, seconds=0.01)
        assert not watched.wait(58)
        assert watched.wait(6)
        watched.wait(100)
    assert [(one["name"], one["step"]) for one in watched.ended] == [("trial 3", 4)]


def test_slow_steps_get_ten_planned_evaluation_intervals(watched: Watched) -> None:
    with watched.beat:
        step_now(watched, 3, seconds=2.0)  # 15 steps to an evaluation: 30 s, and ten times that
        assert not watched.wait(298)
        assert watched.wait(6)


def test_start_and_evaluation_may_take_longer(watched: Watched) -> None:
    with watched.beat:
        assert not watched.wait(800)
        step_now(watched, 15, seconds=0.01)  # evaluation 1 of 4 comes next
        assert not watched.wait(890)
        assert watched.wait(20)


def test_a_driver_that_was_asleep_ends_nothing(watched: Watched) -> None:
    with watched.beat:
        step_now(watched, 3, seconds=0.01)
        watched.wait(2)
        watched.now += 10_000
        assert not watched.wait(10)


def test_a_run_that_has_ended_is_not_watched(watched: Watched, tmp_path: Path) -> None:
    with watched.beat:
        watched.wait(2)
    assert not watched.wait(2000)
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_heartbeat_that_is_half_written_is_read_again_later(watched: Watched, tmp_path: Path) -> None:
    with watched.beat:
        (path,) = (tmp_path / FOLDER).iterdir()
        whole = path.read_text()
        path.write_text(whole[:20])
        assert not watched.wait(2000)
        path.write_text(whole)
        assert json.loads(whole)["interval"] is None
        assert watched.wait(910)


def test_preemptions_do_not_count_as_failures() -> None:
    attempts = Attempts("trial 3", max_failures=1)
    assert all(attempts.again("SIGTERM", preempted=True) for _ in range(MOST_PREEMPTIONS))
    assert attempts.again("ValueError")
    assert not attempts.again("ValueError")
    assert not Attempts("trial 4", max_failures=0).again("ValueError")


def test_what_a_preemption_is() -> None:
    assert was_preempted(NodeDiedError("the node is gone"))
    assert was_preempted(RayActorError(error_msg="The actor died because its node has died. Node Id: 1"))
    assert not was_preempted(RayActorError(error_msg="The actor's worker process exited with connection error code 2"))
    assert not was_preempted(WorkerCrashedError())
    assert not was_preempted(ValueError("of the user's own"))
