"""What counts as a hang and as running time, with a clock of the test's own; and which failures of a run count."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError

from hybrid_ray.ray_tune.recovery.watchdog import Watchdog, _kill
from hybrid_ray.run_result import StepRecord
from hybrid_ray.training.ray_worker import MOST_PREEMPTIONS, Attempts, was_preempted
from hybrid_ray.training.telemetry.heartbeat import FOLDER, Heartbeat
from hybrid_ray.training.telemetry.process_start import start_of


class Watched:
    """A watchdog over one run of 60 steps and 4 evaluations, and a clock that the test sets."""

    def __init__(self, folder: Path, *, cluster: bool = False) -> None:
        self.now, self.ended, self.ran, self.still_runs = 0.0, list[dict[str, Any]](), list[float](), True
        self.dog = Watchdog(
            folder, least=60.0, cluster=cluster, ran=self.ran.append, end=self.end, clock=lambda: self.now
        )
        self.beat = Heartbeat(folder / FOLDER, micro_job(folder).run(), name="trial 3", node="here")

    def end(self, beat: dict[str, Any]) -> "Future[bool]":
        self.ended.append(beat)
        ended = Future[bool]()
        ended.set_result(self.still_runs)
        return ended

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


def test_a_run_without_a_step_for_the_least_time_is_ended_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with watched.beat:
        step_now(watched, 3, seconds=0.01)
        assert not watched.wait(58)
        step_now(watched, 4, seconds=0.01)
        assert not watched.wait(58)
        assert watched.wait(6)
        watched.wait(100)
    assert [(one["name"], one["step"]) for one in watched.ended] == [("trial 3", 4)]
    assert caplog.text.count("trial 3 made no progress for 61 s after step 4: its process") == 1


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


def test_after_the_first_step_a_start_takes_no_longer(watched: Watched) -> None:
    with watched.beat:
        watched.step(1, seconds=0.01)  # within the same half second
        assert watched.wait(65)


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


def test_what_a_run_costs_is_counted_while_it_runs_and_not_while_it_waits(watched: Watched) -> None:
    watched.wait(100)  # for a free GPU
    assert watched.ran == []
    with watched.beat:
        watched.wait(20)
        step_now(watched, 3, seconds=0.01)
        watched.wait(30)
        assert sum(watched.ran) == pytest.approx(20, abs=1)
        step_now(watched, 15, seconds=0.01)
        watched.wait(40)  # its last evaluation
    watched.wait(100)
    assert sum(watched.ran) == pytest.approx(90, abs=1)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that can be killed."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_was_killed_does_not_hang_and_costs_until_its_last_heartbeat(
    watched: Watched, other: subprocess.Popen[bytes], reaped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched.beat._process |= {"pid": other.pid, "created": start_of(other.pid)}
    watched.beat.__enter__()
    watched.wait(10)
    step_now(watched, 3, seconds=0.01)
    watched.wait(5)
    other.kill()
    if reaped:
        other.wait()
    else:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert not watched.wait(2000)
    assert list((tmp_path / FOLDER).iterdir()) == []
    assert caplog.text == ""
    assert sum(watched.ran) == pytest.approx(10, abs=1)


def test_a_number_that_another_process_has_now_is_no_hang(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched.beat._process["created"] -= 3600
    watched.beat.__enter__()
    assert not watched.wait(2000)
    assert caplog.text == ""


@pytest.mark.parametrize("still_runs", [True, False])
def test_on_a_cluster_a_process_is_said_to_hang_only_if_it_still_ran(
    tmp_path: Path, still_runs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path, cluster=True)
    watched.still_runs = still_runs
    with watched.beat:
        step_now(watched, 3, seconds=0.01)
        assert watched.wait(100)
    assert ("made no progress" in caplog.text) == still_runs


def test_only_the_process_of_the_heartbeat_is_ended_and_whether_it_ran_is_known(
    other: subprocess.Popen[bytes],
) -> None:
    start = start_of(other.pid)
    assert not _kill(other.pid, start - 3600)
    assert other.poll() is None
    assert _kill(other.pid, start)
    assert other.wait() == -signal.SIGKILL
    assert not _kill(other.pid, start)


def test_the_end_of_the_last_run_is_seen_by_a_look_after_it(watched: Watched) -> None:
    with watched.beat:
        watched.wait(10)
    watched.now += 0.5
    watched.dog.look()
    assert sum(watched.ran) == pytest.approx(10, abs=1)


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
