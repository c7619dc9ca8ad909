"""The table of real runs: which run represents which settings, and what it refuses."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nano_runs import TABLE, run_table, table_job
from run_table import Knobs, RunTable, write_run_table

from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.arms import frontier_runs
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.results_version import run_settings


def snapped(threshold: float, horizon: int, interval: int) -> Knobs:
    return run_table().snap(replace(run_table().job.hybrid, **Knobs(threshold, horizon, interval)._asdict()))


def test_the_table_is_small_and_of_at_least_200_real_runs() -> None:
    assert TABLE.stat().st_size < 1_500_000
    number = len(run_table().runs)
    assert number >= 200
    assert run_table().whole_seeds
    assert len(run_table().searched_seeds) >= 2
    assert {run.status for run in run_table().runs.values()} <= {"finished", "diverged"}


def test_a_setting_of_the_grid_stands_for_itself() -> None:
    assert all(snapped(*knobs) == knobs for knobs in run_table().settings)


def test_a_setting_between_is_the_nearest_in_logarithms() -> None:
    assert snapped(0.0, 4, 0).prediction_horizon == 5  # and not 3
    assert snapped(0.0, 25, 0).prediction_horizon == 30  # and not 20
    assert snapped(0.0, 30, 2).correction_interval == 3
    assert snapped(0.14, 3, 0).confidence_threshold == 0.1
    assert snapped(0.6, 3, 0).confidence_threshold == 0.5


def test_an_interval_that_is_never_reached_is_no_micro_correction() -> None:
    assert snapped(0.2, 3, 3) == Knobs(0.2, 3, 0)
    assert snapped(0.2, 1, 6) == Knobs(0.2, 1, 0)
    assert snapped(0.2, 5, 4) == Knobs(0.2, 5, 3)


def test_runs_of_real_steps_only_are_the_same_whatever_they_are_called() -> None:
    run = frontier_runs(table_job())[1.0]
    baseline, shorter = run_table().execute(
        [Task(run=run, directory=Path()), Task(run=replace(run, arm="equal_steps"), directory=Path())]
    )
    assert (baseline.arm, shorter.arm) == ("baseline", "equal_steps")
    assert baseline.heldout == shorter.heldout


def test_a_run_at_another_rate_is_none_of_them() -> None:
    run = replace(frontier_runs(table_job())[1.0], arm="lr_matched")
    (missing,) = run_table().execute([Task(run=run, directory=Path())])
    assert (missing.status, "no lr_matched run" in str(missing.error)) == ("failed", True)


def test_what_the_table_lacks_is_a_failed_run_that_says_so() -> None:
    job = table_job()
    (missing,) = run_table().execute([Task(run=job.run(seed=77), directory=Path())])
    assert missing.status == "failed"
    assert "no hybrid run of Knobs(" in str(missing.error)
    assert "seed 77" in str(missing.error)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"learning_rate": 1e-3}}, "train.learning_rate: 0.006 -> 0.001"),
        ({"hybrid": {"full_steps": 5}}, "hybrid.full_steps: 10 -> 5"),
        ({"seed": 5}, "seed is 5"),
    ],
)
def test_another_job_is_refused_with_every_difference(changes: dict[str, Any], said: str) -> None:
    job = table_job()
    parts = {
        name: replace(getattr(job, name), **values) if isinstance(values, dict) else values
        for name, values in changes.items()
    }
    with pytest.raises(ConfigError, match="the table of runs is of another job") as refused:
        run_table().check(replace(job, **parts))
    assert said in str(refused.value)


def test_a_job_that_only_searches_or_scores_otherwise_is_not_refused_and_has_its_runs() -> None:
    job = table_job(mode="net", trials=7, sampler="random")
    job = replace(job, hybrid=replace(job.hybrid, prediction_horizon=9))
    run_table().check(job)
    (found,) = run_table().execute([Task(run=job.run(), directory=Path())])
    assert (found.status, found.seed) == ("finished", job.seed)
    assert found.predicted_steps > 0


def test_a_space_whose_ranges_have_changed_is_refused() -> None:
    ranges = {**run_table().ranges, "prediction_horizon": {**run_table().ranges["prediction_horizon"], "high": 99}}
    with pytest.raises(ConfigError, match=r"search\.ranges\.prediction_horizon\.high: 99 -> 30"):
        replace(run_table(), ranges=ranges).check(table_job())


def test_a_table_is_written_from_the_folders_of_finished_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    job, path = table_job(), tmp_path / "two.parquet"
    runs = [Task(run=run, directory=tmp_path / run.arm) for run in (frontier_runs(job)[1.0], job.run())]
    results = run_table().execute(runs)
    for task, result in zip(runs, results, strict=True):
        write_json_atomic(task.directory / "run.json", run_settings(task.run, task.directory))
        write_json_atomic(task.directory / "result.json", result.as_dict())
    write_run_table(path, job, importlib.import_module("make_run_table").kept_runs(tmp_path))
    table = RunTable.read(path)
    assert (len(table.runs), table.execute(runs)) == (2, results)


def test_no_table_is_told_with_what_makes_one(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for name in ("missing.parquet", "broken.parquet"):
        with pytest.raises(ConfigError, match=r"benchmarks/make_run_table\.py"):
            RunTable.read(tmp_path / name)
