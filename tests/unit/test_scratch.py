"""What Ray and the heartbeats leave in the folder of a comparison, a tuning or a run is removed however it ends."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from simulated_runs import Simulator

from hybrid_ray.config import CompareConfig, JobConfig, ResourcesConfig, RunConfig
from hybrid_ray.errors import HybridRayError
from hybrid_ray.evaluation.runner import Task, failed_result
from hybrid_ray.ray_tune.cluster import Resources
from hybrid_ray.run_result import RunResult
from hybrid_ray.study import commands
from hybrid_ray.study.commands import compare_arms, tune_learning_rate
from hybrid_ray.study.stopping import Stopped


def leave_heartbeats(storage: Path) -> None:
    (storage / "heartbeats").mkdir(parents=True)
    (storage / "heartbeats" / "here-1.json").write_text("{}")


class Ends(Simulator):
    """Leaves files behind, and then simulates the runs, or raises."""

    error: BaseException | None
    storage: Path

    def machine_of_runs(self, run: RunConfig, *, known: object = None) -> dict[str, Any]:
        leave_heartbeats(self.storage)
        return {}

    def __call__(self, tasks: Sequence[Task]) -> list[RunResult]:
        if self.error is not None:
            raise self.error
        return super().__call__(tasks)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ray_session", lambda _: nullcontext(Resources(cpus=2, gpus=0)))
    monkeypatch.setattr(commands, "cluster_nodes", lambda *_: None)


@pytest.mark.parametrize("command", [compare_arms, tune_learning_rate])
@pytest.mark.parametrize(
    "error",
    [None, Stopped("a signal asked to stop"), HybridRayError("Ray has died"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_of_a_comparison_or_a_tuning(
    command: Callable[..., object], error: BaseException | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executor(job: JobConfig, *, storage: Path, **_: object) -> Ends:
        made = Ends(write=True)
        made.error, made.storage = error, storage
        return made

    monkeypatch.setattr(commands, "RayExecute", executor)
    monkeypatch.setattr("hybrid_ray.evaluation.comparison.compare.write_comparison", lambda _: None)  # slow
    job = micro_job(tmp_path, compare=CompareConfig(interim_analyses=(3,), arms=("placebo",), peers=()))
    with nullcontext() if error is None else pytest.raises(type(error)):
        command(job, directory=tmp_path / "place")
    assert [*(tmp_path / "place").iterdir()]
    assert not (tmp_path / "place" / ".ray").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_of_a_run_of_several_workers(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(run: RunConfig, *, storage: Path, **_: object) -> RunResult:
        leave_heartbeats(storage)
        if fails:
            raise HybridRayError("a worker died")
        return failed_result(run, "no")

    monkeypatch.setattr(commands, "fit_with_workers", fit)
    job = micro_job(tmp_path, resources=ResourcesConfig(workers=2))
    with pytest.raises(HybridRayError) if fails else nullcontext():
        commands.train_once(job, arm="baseline", directory=tmp_path / "place")
    assert not (tmp_path / "place" / ".ray").exists()
