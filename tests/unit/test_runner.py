"""Running tasks in this process, going on after an interruption, and the cache of runs that no search changes."""

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import Simulator

from hybrid_ray.config import DataConfig, HybridConfig, RunConfig, TrainConfig
from hybrid_ray.errors import ConfigError, TrialOutOfMemory
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.runner import Task, cached, execute_here, execute_missing, failed_result, stored_result
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.run_cache import RunCache, baseline_key
from hybrid_ray.training import loop

MACHINE = {"hardware": "cpu", "software": {"torch": "2.13"}}
PLAIN = baseline(RunConfig())


def key(run: RunConfig = PLAIN, *, corpus: str = "abc", machine: dict[str, Any] = MACHINE) -> str:
    return baseline_key(run, corpus=corpus, machine=machine)


def test_a_run_that_cannot_run_is_a_failed_result_and_the_next_one_goes_on(tmp_path: Path) -> None:
    tiny = RunConfig(
        train=TrainConfig(steps=10, batch_size=2, sequence_length=8, evaluations=1, calibration_steps=5),
        data=DataConfig(heldout_tokens=1024, max_bytes=200_000),
    )
    wrong = replace(tiny, data=replace(tiny.data, corpus="no such folder"))
    tasks = [Task(run=wrong, directory=tmp_path / "a"), Task(run=baseline(tiny), directory=tmp_path / "b")]
    failed, finished = execute_here(tasks)
    assert (failed.status, failed.steps, failed.time) == ("failed", 0, 0.0)
    assert "no such folder" in (failed.error or "")
    assert (finished.status, finished.real_steps) == ("finished", 10)
    assert stored_result(tasks[1]) == finished
    assert stored_result(tasks[0]) is None


def test_out_of_memory_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(run: RunConfig, **_: Any) -> RunResult:
        raise TrialOutOfMemory("CUDA out of memory")

    monkeypatch.setattr(loop, "train", no_room)
    (found,) = execute_here([Task(run=PLAIN, directory=tmp_path)])
    assert found.error == "oom: CUDA out of memory"


def test_after_a_signal_nothing_more_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def stopped(run: RunConfig, **_: Any) -> RunResult:
        started.append(run.seed)
        return replace(failed_result(run, "asked to stop"), status="stopped")

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        execute_here([Task(run=replace(PLAIN, seed=seed), directory=tmp_path / str(seed)) for seed in range(2)])
    assert started == [0]


def test_a_failed_result_is_stored_like_any_other() -> None:
    found = failed_result(PLAIN, "oom")
    assert RunResult.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_only_missing_runs_are_run_again_and_in_order(tmp_path: Path) -> None:
    tasks = [Task(run=replace(PLAIN, seed=seed), directory=tmp_path / str(seed)) for seed in range(4)]
    first = Simulator(noise=0.01, write=True, broken=lambda run: "failed" if run.seed == 3 else None)
    kept = execute_missing(first, tasks[1:])
    again = Simulator(noise=0.01, stream=1)
    results = execute_missing(again, tasks)
    assert [run.seed for run in again.ran] == [0, 3]  # the missing one, and the one that failed
    assert [result.seed for result in results] == [0, 1, 2, 3]
    assert results[1:3] == kept[:2]


def test_what_another_results_version_finished_is_neither_compared_with_nor_removed(tmp_path: Path) -> None:
    tasks = [Task(run=replace(PLAIN, seed=seed), directory=tmp_path / str(seed)) for seed in range(2)]
    execute_missing(Simulator(write=True), tasks)
    (tmp_path / "1" / "code.json").write_text("{}")
    again = Simulator(write=True)
    with pytest.raises(ConfigError, match="another folder") as refused:
        execute_missing(again, tasks)
    assert str(tmp_path / "1") in str(refused.value)
    assert again.ran == []
    assert (tmp_path / "1" / "result.json").exists()


def test_what_another_results_version_left_unfinished_is_run_again_from_its_start(tmp_path: Path) -> None:
    task = Task(run=PLAIN, directory=tmp_path / "run")
    Simulator(write=True, broken=lambda run: "stopped")([task])
    (tmp_path / "run" / "code.json").write_text("{}")
    (tmp_path / "run" / "checkpoint").mkdir()
    again = Simulator(write=True)
    execute_missing(again, [task])
    assert len(again.ran) == 1
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_moved_study_keeps_its_runs(tmp_path: Path) -> None:
    """A control names the run that it replays relative to itself; where prepared data are kept defines nothing."""

    def control(study: Path, cache: str) -> Task:
        data = replace(PLAIN.data, cache_dir=cache)
        return Task(
            run=replace(PLAIN, data=data, replay=str(study / "hybrid/result.json")), directory=study / "placebo"
        )

    Simulator(write=True)([control(tmp_path / "old", "here")])
    (tmp_path / "old").rename(tmp_path / "new")
    assert stored_result(control(tmp_path / "new", "there")) is not None
    other = control(tmp_path / "new", "there")
    replays_another = replace(other.run, replay=str(tmp_path / "new/other/result.json"))
    assert stored_result(Task(run=replays_another, directory=other.directory)) is None


def test_another_run_in_the_same_directory_is_not_taken_for_it(tmp_path: Path) -> None:
    Simulator(write=True)([Task(run=PLAIN, directory=tmp_path)])
    assert stored_result(Task(run=PLAIN, directory=tmp_path)) is not None
    longer = replace(PLAIN, train=replace(PLAIN.train, steps=601))
    assert stored_result(Task(run=longer, directory=tmp_path)) is None
    (tmp_path / "result.json").write_text("{")
    assert stored_result(Task(run=PLAIN, directory=tmp_path)) is None


def altered(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return (*value, 0.5)
    return "other"


@pytest.mark.parametrize("section", ["model", "data", "train", "hybrid"])
def test_every_field_of_a_run_changes_its_key(section: str) -> None:
    part = getattr(PLAIN, section)
    names = [field.name for field in fields(part) if field.name != "cache_dir"]  # where data are kept defines nothing
    keys = set()
    for name in names:
        other = copy(part)  # whether a job could have this value does not matter here
        object.__setattr__(other, name, altered(getattr(part, name)))
        keys.add(key(replace(PLAIN, **{section: other})))  # type: ignore[arg-type]
    assert len(keys | {key()}) == len(names) + 1


def test_data_hardware_and_software_change_the_key_and_nothing_else_does() -> None:
    keys = {key(), key(corpus="abd"), key(machine={**MACHINE, "hardware": "H200"}), key(replace(PLAIN, seed=1))}
    assert len(keys) == 4
    assert key(machine=dict(reversed(MACHINE.items()))) == key()
    assert key(baseline(replace(PLAIN, hybrid=HybridConfig(predictor={"gain": 9.0})))) == key()


def test_a_replay_is_never_cached() -> None:
    with pytest.raises(ValueError, match="never cached"):
        key(replace(PLAIN, replay="result.json"))


def run_cached(
    cache: RunCache, simulator: Simulator, directory: Path, *, machine: dict[str, Any] = MACHINE
) -> list[RunResult]:
    execute = cached(simulator, cache, corpus="abc", machine=machine)
    return execute([Task(run=replace(PLAIN, seed=seed), directory=directory / str(seed)) for seed in (0, 1)])


def test_a_second_study_trains_no_baseline_and_has_a_copy_of_its_own(tmp_path: Path) -> None:
    cache = RunCache(root=tmp_path / "cache" / "runs")
    first = run_cached(cache, Simulator(noise=0.01, write=True), tmp_path / "one")
    other = Simulator(noise=0.01, stream=1, write=True)
    second = run_cached(cache, other, tmp_path / "two")
    assert other.ran == []
    assert second == first
    stored = read_json(tmp_path / "two" / "1" / "result.json")
    assert RunResult.from_dict(stored) == first[1]
    assert not list(tmp_path.rglob(".*"))  # no scratch left


def test_failed_runs_and_checkpoints_are_not_kept_and_damage_is_a_miss(tmp_path: Path) -> None:
    cache = RunCache(root=tmp_path / "cache")
    run_cached(cache, Simulator(write=True, broken=lambda run: "failed" if run.seed else None), tmp_path / "one")
    (kept,) = cache.root.iterdir()
    (kept / "result.json").write_text("{")
    (tmp_path / "two" / "0" / "checkpoint").mkdir(parents=True)
    simulator = Simulator(write=True)
    run_cached(cache, simulator, tmp_path / "two")
    assert len(simulator.ran) == 2
    assert sorted(path.name for path in kept.iterdir()) == ["cache_key", "code.json", "result.json", "run.json"]
    assert cache.fetch(kept.name, tmp_path / "three") is not None


OTHER = {**MACHINE, "hardware": "H200"}


def test_what_was_run_on_another_machine_is_neither_taken_nor_kept_for_this_one(tmp_path: Path) -> None:
    cache, study = RunCache(root=tmp_path / "cache"), tmp_path / "study"
    run_cached(cache, Simulator(noise=0.01, write=True), study)
    (study / "0" / "checkpoint").mkdir()  # as an interrupted run leaves it: not to be gone on with either
    there = Simulator(noise=0.01, stream=1, write=True)
    second = run_cached(cache, there, study, machine=OTHER)
    assert len(there.ran) == 2
    assert not (study / "0" / "checkpoint").exists()
    nobody = Simulator()
    assert run_cached(cache, nobody, tmp_path / "third", machine=OTHER) == second
    assert nobody.ran == []


def test_a_run_that_fell_back_is_kept_for_its_study_alone(tmp_path: Path) -> None:
    cache, study = RunCache(root=tmp_path / "cache"), tmp_path / "study"

    def short_of_memory(tasks: Sequence[Task]) -> list[RunResult]:
        results = [
            replace(each, machine={"fallbacks": "eager, micro-batch 16: out of memory"}) for each in whole(tasks)
        ]
        for task, result in zip(tasks, results, strict=True):
            (task.directory / "result.json").write_text(json.dumps(result.as_dict()))
        return results

    whole, other = Simulator(write=True), Simulator(write=True)
    tasks = [Task(run=PLAIN, directory=study)]
    fallen = cached(short_of_memory, cache, corpus="abc", machine=MACHINE)(tasks)
    assert run_cached(cache, other, tmp_path / "other study")[0] != fallen[0]
    assert cached(other, cache, corpus="abc", machine=MACHINE)(tasks) == fallen
    assert len(other.ran) == 2


def test_a_directory_without_a_key_is_run_again(tmp_path: Path) -> None:
    cache, study = RunCache(root=tmp_path / "cache"), tmp_path / "study"
    Simulator(write=True)([Task(run=replace(PLAIN, seed=seed), directory=study / str(seed)) for seed in (0, 1)])
    again = Simulator(write=True)
    run_cached(cache, again, study)
    assert len(again.ran) == 2


def test_an_interrupted_session_repeats_nothing_and_its_own_runs_come_before_the_cache(tmp_path: Path) -> None:
    cache, study = RunCache(root=tmp_path / "cache"), tmp_path / "study"

    def killed(tasks: Sequence[Task]) -> list[RunResult]:
        Simulator(noise=0.01, stream=1, write=True)(tasks[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(killed, cache, corpus="abc", machine=MACHINE)(
            [Task(run=replace(PLAIN, seed=seed), directory=study / str(seed)) for seed in (0, 1)]
        )
    run_cached(cache, Simulator(noise=0.01, stream=2, write=True), tmp_path / "other study")
    nobody = Simulator()
    resumed = run_cached(cache, nobody, study)
    assert nobody.ran == []
    assert resumed[0] == Simulator(noise=0.01, stream=1).one(Task(run=PLAIN, directory=study))


def test_the_first_of_two_writers_stays(tmp_path: Path) -> None:
    cache, task = RunCache(root=tmp_path / "cache"), Task(run=PLAIN, directory=tmp_path / "run")
    (first,) = Simulator(noise=0.01, write=True)([task])
    cache.store("key", task.directory)
    Simulator(noise=0.01, stream=1, write=True)([task])
    cache.store("key", task.directory)
    assert cache.fetch("key", tmp_path / "copy") == first
    assert json.loads((tmp_path / "copy" / "run.json").read_text())["arm"] == asdict(PLAIN)["arm"]
