"""The queue of the findings: every run in it can be, none is trained twice, and a rate is the tuned one."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("findings")


@pytest.fixture
def arms(findings: ModuleType) -> ModuleType:
    return importlib.import_module("findings_arms")


def line(spec: Any, loss: float) -> str:
    return json.dumps({"spec": {**vars_of(spec)}, "status": "finished", "val": loss, "test": loss}) + "\n"


def vars_of(spec: Any) -> dict[str, Any]:
    return json.loads(spec.key)


def test_every_run_is_valid_and_predicts_what_it_says(findings: ModuleType, tmp_path: Path) -> None:
    results = findings.Results(tmp_path / "none.jsonl")
    results.best_rate = lambda arm, width, steps, batch=16: 3e-3
    specs = list(findings.queue(results))
    assert {spec.arm for spec in specs} >= {"adamw", "slow_momentum", "ademamix", "ema_nesterov", "placebo", "muon"}
    for spec in specs:
        run = spec.run()
        assert run.hybrid.predictor.name == "none" or run.train.steps > spec.steps
    slow = next(spec for spec in specs if spec.arm == "slow_momentum")
    assert slow.run().train.steps == 2 * slow.steps


def test_a_finished_run_is_not_in_the_queue_and_the_best_rate_is_that_of_the_tuning_seeds(
    findings: ModuleType, arms: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "found.jsonl"
    losses = {rate: 2.0 + rate for rate in arms.RATES["adamw", 32]} | {6e-3: 1.0}
    with path.open("w") as file:
        for seed in arms.TUNING_SEEDS:
            file.writelines(line(arms.adamw(32, 4000, seed, rate), loss) for rate, loss in losses.items())
        file.write(line(arms.adamw(32, 4000, 1, 4e-3), 0.1))  # no tuning seed: it has no say
        file.write('{"spec": {"arm": "ada')  # torn
    results = findings.Results(path)
    assert results.best_rate("adamw", 32, 4000) == 6e-3
    assert results.best_rate("slow_momentum", 32, 4000) is None
    assert results.has(arms.adamw(32, 4000, 101, 6e-3))
    assert not any(results.has(spec) for spec in [findings.next_run(results, "")])


def test_the_findings_of_a_gpu_end_with_a_table_of_the_arms(
    arms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {"train_seconds": 2.0, "part_seconds": {"data": 0.1, "forward": 0.8, "backward": 1.0}}
    path = tmp_path / "found.jsonl"
    with path.open("w") as file:
        for arm, loss in (("adamw", 2.0), ("slow_momentum", 1.9)):
            for seed in (1, 2, 3):
                row = {"status": "finished", "val": loss, "test": loss + 0.01 * seed, **seconds}
                file.write(json.dumps({"spec": vars_of(arms.ARMS[arm](32, 100, seed, 1e-3)), **row}) + "\n")
    monkeypatch.setattr("sys.argv", ["gpu_findings.py", "--json", str(path), "--cpu", "--minutes", "-1"])
    importlib.import_module("gpu_findings").main()
    said = capsys.readouterr().out
    assert "### Width 32, 100 real steps" in said
    assert "| slow_momentum | 0.001 | 3 |" in said
    assert "-0.1000" in said
