"""Variants of a comparison: what they may change, and one comparison with a variant that was really run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from hybrid_ray.cli import main
from hybrid_ray.config import (
    CompareConfig,
    DataConfig,
    FrontierConfig,
    HybridConfig,
    JobConfig,
    ModelConfig,
    PublishedName,
    TrainConfig,
)
from hybrid_ray.config.jobfile import dump_job, job_from_dict, variant_jobs
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.comparison.compare import compare
from hybrid_ray.evaluation.runner import execute_here
from hybrid_ray.report.tables.configurations import OURS
from hybrid_ray.report.tables.published import PUBLISHED

WIDER = {"train.precision": "bf16", "train.batch_size": 8, "train.micro_batch_size": 2}
LENGTH, STEPS = 8, 16


def with_variants(**variants: Any) -> dict[str, Any]:
    return {"compare": {"variants": variants}}


def test_a_variant_is_the_job_with_its_settings_over_it() -> None:
    job = job_from_dict(with_variants(wider=WIDER, keen={"hybrid.confidence_threshold": 0}))
    jobs = variant_jobs(job)
    assert list(jobs) == ["wider", "keen"]
    wider = jobs["wider"].train
    assert (wider.precision, wider.batch_size, wider.micro_batch_size) == ("bf16", 8, 2)
    assert replace(wider, precision="fp32", batch_size=16, micro_batch_size=None) == job.train
    assert jobs["keen"] == replace(
        job, hybrid=replace(job.hybrid, confidence_threshold=0.0), compare=replace(job.compare, variants={})
    )
    tuned = replace(job, train=replace(job.train, learning_rate=0.5))
    assert variant_jobs(tuned)["wider"].train.learning_rate == 0.5


@pytest.mark.parametrize(
    "name, settings, part",
    [
        ("wide", {"train.batch_sise": 8}, "compare.variants.wide: train.batch_sise is not a setting"),
        ("wide", {"train.batch_size": 8, "train.micro_batch_size": 3}, "compare.variants.wide: train.micro_batch_size"),
        ("wide", {"train.precision": "fp8"}, "must be one of fp32, bf16"),
        ("wide", {"train.steps": 10}, "is the same in all configurations"),
        ("wide", {"data.corpus": "random"}, "a variant can't change seeds, data or statistics"),
        ("wide", {"train.micro_batch_size": "auto"}, "give the variant a number"),
        ("baseline", {}, "neither baseline nor hybrid"),
        ("wide_plain", {}, "not end in _plain"),
    ],
)
def test_what_is_wrong_with_a_variant_is_said_before_anything_starts(
    name: str, settings: dict[str, Any], part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict(with_variants(**{name: settings}))
    assert any(part in problem for problem in caught.value.problems)


def test_problems_of_all_variants_and_of_the_job_are_listed_once() -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict({"seed": -1, **with_variants(a={"train.steps": 3}, b={"model.dropout": 7.0})})
    assert len(caught.value.problems) == 3


def test_every_published_name_has_its_table_and_every_row_a_value_or_ours() -> None:
    assert set(PUBLISHED) == set(get_args(PublishedName))
    for known in PUBLISHED.values():
        for row in known.rows:
            assert len(row.values) in (0, len(known.arms))
            assert row.values or row.ours
            assert row.ours is None or row.ours in OURS
    with pytest.raises(ConfigError, match="published is 'resnet'"):
        job_from_dict({"published": "resnet"})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of a micro model with two variants, each run in this process."""
    folder = tmp_path_factory.mktemp("variants")
    job = JobConfig(
        name="small",
        published="gpt2_small_50_steps",
        model=ModelConfig(preset="micro"),
        data=DataConfig(corpus="random", max_bytes=100_000, heldout_tokens=1024, cache_dir=str(folder / "cache")),
        train=TrainConfig(steps=STEPS, batch_size=4, sequence_length=LENGTH, evaluations=1, calibration_steps=5),
        hybrid=HybridConfig(
            warmup_steps=3,
            full_steps=3,
            prediction_horizon=3,
            confidence_threshold=1.0,
            first_fraction=0.0,
            off_fraction=0.0,
        ),
        frontier=FrontierConfig(lengths=(0.4, 0.55, 0.7, 0.85, 1.0)),
        compare=CompareConfig(
            interim_analyses=(3,),
            arms=(),
            tune_baseline=False,
            peers=("ademamix",),
            variants={
                "memory_optimised": {**WIDER, "hybrid.confidence_threshold": 0.0},
                "always_predicts": {"hybrid.confidence_threshold": 0.0},
            },
        ),
    )
    compare(job, execute=execute_here, directory=folder / "comparison")
    (folder / "comparison" / "job.yaml").write_text(dump_job(job))
    return folder / "comparison"


def test_a_variant_stands_beside_the_baseline_and_beside_itself_without_prediction(compared: Path) -> None:
    found = json.loads((compared / "comparison.json").read_text())
    entries = {entry["name"]: entry for entry in found["configurations"]}
    assert list(entries) == [
        "baseline",
        "hybrid",
        "memory_optimised",
        "memory_optimised_plain",
        "always_predicts",  # its settings without prediction are the baseline's
    ]
    assert {len(entry["runs"]) for entry in entries.values()} == {3}
    assert len({tuple(run["seed"] for run in entry["runs"]) for entry in entries.values()}) == 1
    ours, plain = entries["memory_optimised"], entries["memory_optimised_plain"]
    assert ours["settings"] == plain["settings"] != {}
    run, whole = ours["runs"][0], plain["runs"][0]
    assert whole["predicted_share"] == 0 < run["predicted_share"]
    assert run["phase_shares"]["predict"] == run["predicted_share"]
    read = run["tokens_per_second"] * run["train_seconds"]
    assert read == pytest.approx(8 * LENGTH * STEPS * (1 - run["predicted_share"]))  # its own batch, real steps alone
    assert run["nominal_tokens_per_second"] * run["train_seconds"] == pytest.approx(8 * LENGTH * STEPS)
    assert run["most_memory_bytes"] >= run["first_memory_bytes"] > 0
    assert run["first_train_loss"] == pytest.approx(5.55, abs=0.1)
    ratio = ours["ratios"]["speedup_vs_plain"]
    assert ratio["n"] == 3
    assert ratio["low"] < ratio["mean"] < ratio["high"]
    assert set(entries["baseline"]["ratios"]) == set()
    assert entries["hybrid"]["net_speedup"] == found["net_speedup"]
    assert entries["always_predicts"]["net_speedup"] is not None  # the only one with the baseline's own frontier
    assert [entries[name]["net_speedup"] for name in ("baseline", "memory_optimised", "memory_optimised_plain")] == (
        [None] * 3
    )
    assert (
        entries["always_predicts"]["ratios"]["loss_vs_plain"]
        == entries["always_predicts"]["ratios"]["loss_vs_baseline"]
    )


def test_its_pages_say_what_never_predicted_and_show_the_published_numbers(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(compared)]) == 0
    assert capsys.readouterr().out.startswith("Predicting was not tested")
    for name in ("report.html", "report.md"):
        page = (compared / name).read_text()
        assert "hybrid never predicted: its confidence reached at most" in page
        assert "1,419 tok/s" in page
        assert "loss ratio at equal time (stopping early / hybrid)" in page
        assert "always predicts never predicted" not in page
    rows = [line for line in (compared / "report.md").read_text().splitlines() if line.startswith("| total time")]
    assert rows[0].startswith("| total time | 31.3s | 25.1s | 18.0s |")
    assert "–" not in rows[0]  # all three of ours ran
    assert "50 steps, as published; here micro, 16 steps, random" in (compared / "report.md").read_text()
    assert "net speedup over stopping early" in (compared / "comparison.txt").read_text()
    assert "memory optimised plain" in (compared / "comparison.txt").read_text()


def test_a_peer_that_was_really_run_is_told_in_the_baselines_time(compared: Path) -> None:
    """It trains on every seed for as long as the hybrid did, by what its own steps take in plain steps of AdamW."""
    found = json.loads((compared / "comparison.json").read_text())
    (peer,) = found["peers"]
    hybrids = {row["seed"]: row["time"] for row in found["arms"]["hybrid"]}
    assert {row["seed"] for row in peer["runs"]} == hybrids.keys()
    for row in peer["runs"]:
        assert row["status"] == "finished"
        result = json.loads((compared / f"peers/ademamix/peer-{row['seed']}/result.json").read_text())
        assert result["optimizer_cost"] != 1.0
        assert 10 <= row["real_steps"] <= STEPS * 1.5
    assert "AdEMAMix" in (compared / "report.html").read_text()
