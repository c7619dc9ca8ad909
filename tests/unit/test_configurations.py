"""Configurations in raw seconds: what each may be compared with."""

from dataclasses import replace
from typing import Any

import pytest
from simulated_runs import law, result

from hybrid_ray.config import RunConfig
from hybrid_ray.evaluation.arms import baseline
from hybrid_ray.evaluation.comparison.configurations import configurations
from hybrid_ray.evaluation.frontier import Frontier
from hybrid_ray.run_result import RunResult

FRONTIER = Frontier.from_points((steps, law(steps)) for steps in (200, 300, 400, 500, 600, 700))


def runs(micro: int, *, plain: bool = False, **values: Any) -> dict[int, RunResult]:
    run = baseline(RunConfig()) if plain else replace(RunConfig(), arm="hybrid")
    setting = {"setting": {"compiled": True, "micro_batch_size": micro}}
    return {seed: result(replace(run, seed=seed), fingerprint=setting, **values) for seed in range(3)}


def entries(**more: dict[int, RunResult]) -> dict[str, dict[str, Any]]:
    whole = {"baseline": runs(8, plain=True), "hybrid": runs(8), **more}
    names = {name: {"train.micro_batch_size": 4} for name in more if not name.endswith("_plain")}
    found = configurations(whole, names, "test", level=0.95, frontier=FRONTIER, net={"mean": None})
    return {entry["name"]: entry for entry in found}


def test_a_variant_is_of_one_setting_with_its_own_runs_without_prediction() -> None:
    alike = entries(small=runs(4), small_plain=runs(4, plain=True))["small"]
    assert alike["ratios"]["speedup_vs_plain"]["n"] == 3
    assert alike["net_speedup"] is None  # nobody ran its frontier
    fell_back = entries(small=runs(2), small_plain=runs(4, plain=True))["small"]
    assert {run["status"] for run in fell_back["runs"]} == {"failed"}
    assert "train.micro_batch_size to 2" in fell_back["runs"][0]["error"]


def test_a_variant_of_the_baselines_own_settings_stands_beside_stopping_early() -> None:
    """It reaches in 400 steps of time what takes real steps 480."""
    keen = {seed: runs(8, loss=law(479 + seed), train_seconds=0.02 * 400)[seed] for seed in range(3)}
    net = entries(keen=keen)["keen"]["net_speedup"]
    assert net["mean"] == pytest.approx(1.2, rel=0.01)
    assert net["n"] == 3
