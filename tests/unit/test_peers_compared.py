"""Peers in a comparison: tuned like the baseline, timed by its clock, and what may then be said."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_runs import Simulator
from torch import nn
from torch.optim import SGD, Optimizer

from hybrid_ray.config import CompareConfig, HybridConfig, JobConfig, TrainConfig
from hybrid_ray.config.jobfile import job_from_dict
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.comparison.compare import compare
from hybrid_ray.evaluation.comparison.peers import check_peers
from hybrid_ray.tasks import Task

JOB = JobConfig(compare=CompareConfig(interim_analyses=(3, 6), arms=(), peers=("ademamix", "muon")))


def compared(folder: Path, job: JobConfig = JOB, **settings: Any) -> tuple[dict[str, Any], Simulator, str]:
    """What was found, who ran, and the page."""
    simulator = Simulator(**{"noise": 1e-4, "seed_noise": 0.01, **settings})
    found = compare(job, execute=simulator, directory=folder)
    return found, simulator, (folder / "report.md").read_text()


def peer(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in found["peers"] if one["name"] == name)


def test_a_gain_over_every_peer_comes_from_predicting(tmp_path: Path) -> None:
    found, _, page = compared(tmp_path, gain=1.3, peers={"ademamix": (1.1, 1.0), "muon": (1.05, 1.0)})
    assert (found["verdict"], found["predicting_pays"], found["best_peer"]) == ("real gain", True, "ademamix")
    assert peer(found, "ademamix")["net_speedup"]["mean"] == pytest.approx(1.3 / 1.1, rel=0.02)
    assert peer(found, "ademamix")["over_baseline"]["mean"] == pytest.approx(1.1, rel=0.02)
    assert page.startswith("# Predicting pays: the hybrid reaches its loss faster than plain AdamW, and than AdEMAMix")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "own, peer, missing",
    [
        ("adamw", "muon", "AdEMAMix"),
        ("muon", "ademamix", "Muon with AdEMAMix's average"),
        ("muon", "muon_ademamix", None),
        ("ademamix", "muon", None),
    ],
)
def test_a_gain_of_slow_momentum_needs_the_peer_with_the_same_average(
    own: Any, peer: Any, missing: str | None, tmp_path: Path
) -> None:
    jumps = HybridConfig(predictor="slow_momentum", gate="always", prediction_horizon=5)
    job = replace(
        JOB, hybrid=jumps, train=replace(JOB.train, optimizer=own), compare=replace(JOB.compare, peers=(peer,))
    )
    found, _, page = compared(tmp_path, job, gain=1.3, peers={peer: (1.05, 1.0)})
    assert found["verdict"] == "real gain"
    assert found["predicting_pays"] is (None if missing else True)
    assert page.startswith("# Predicting pays") == (missing is None)
    assert (f"but {missing}, which takes the same slow average into each" in page) == (missing is not None)


def test_a_gain_that_a_peer_has_too_is_the_optimizers(tmp_path: Path) -> None:
    found, _, page = compared(tmp_path, gain=1.3, peers={"ademamix": (1.35, 1.0), "muon": (1.0, 1.0)})
    assert (found["verdict"], found["predicting_pays"]) == ("real gain", False)
    assert page.startswith("# The optimizer pays: AdEMAMix without predictions reaches this loss in 0.96 of the time")
    assert "net speedup over AdamW 1.3" in page.splitlines()[0]
    text = (tmp_path / "comparison.txt").read_text()
    assert "The optimizer pays: AdEMAMix" in text.replace("\n", " ")
    assert max(map(len, text.splitlines())) <= 100
    assert 'class="none"' in (tmp_path / "report.html").read_text()


def test_a_gain_over_one_peer_of_two_is_not_predictings(tmp_path: Path) -> None:
    found, _, page = compared(tmp_path, gain=1.2, noise=0.002, peers={"ademamix": (1.2, 1.0), "muon": (1.0, 1.0)})
    assert found["verdict"] == "real gain"
    assert found["predicting_pays"] is None
    assert found["seeds"] == [2000, 2001, 2002, 2003, 2004, 2005]  # more seeds were asked, since one question was open
    assert page.startswith("# The optimizer pays: AdEMAMix")


def test_without_peers_it_is_said_that_none_was_compared(tmp_path: Path) -> None:
    job = replace(JOB, compare=replace(JOB.compare, peers=()))
    found, _, page = compared(tmp_path, job, gain=1.3)
    assert found["verdict"] == "real gain"
    assert page.startswith("# A gain over AdamW: ")
    assert (
        "No other optimizer (peer) was compared, so a better optimizer may give the same gain." in page.splitlines()[0]
    )


def test_a_gain_over_an_optimizer_whose_rate_is_not_tuned_well_is_called_uncertain(tmp_path: Path) -> None:
    _, _, tuned = compared(tmp_path / "tuned", gain=1.3, peers={"ademamix": (1.1, 1.0), "muon": (1.05, 1.0)})
    assert "learning rate" not in tuned.splitlines()[0]
    _, _, edge = compared(tmp_path / "edge", gain=1.3, learning_rate=6e-3, peers={"ademamix": (1.1, 1.0)})
    assert edge.splitlines()[0].endswith(
        "The learning rate of AdamW, AdEMAMix and Muon is the lowest or highest tried, so with a better one this gain "
        "may be smaller or none."
    )
    two = replace(JOB, compare=replace(JOB.compare, lr_factors=(0.5, 1.0), peers=()))
    assert "The learning rate of AdamW is the lowest or" in compared(tmp_path / "two", two, gain=1.3)[2].splitlines()[0]
    none = replace(JOB, compare=replace(JOB.compare, tune_baseline=False, peers=()))
    assert (
        "The learning rate of AdamW was not tuned, so" in compared(tmp_path / "none", none, gain=1.3)[2].splitlines()[0]
    )


def test_a_peers_dearer_steps_count_against_it(tmp_path: Path) -> None:
    """As good a step, at 1.3 plain steps each: it gets fewer of them in the hybrid's time, and gains nothing."""
    cheap, runs, _ = compared(tmp_path / "cheap", gain=1.2, peers={"muon": (1.2, 1.0)})
    dear, dearer, _ = compared(tmp_path / "dear", gain=1.2, peers={"muon": (1.2, 1.3)})
    steps = [{run.train.steps for run in one.ran if run.arm == "peer"} for one in (runs, dearer)]
    assert steps == [{420}, {420, 323}]  # the dear one of muon alone
    assert peer(cheap, "muon")["net_speedup"]["mean"] == pytest.approx(1.0, rel=0.02)
    assert peer(dear, "muon")["net_speedup"]["mean"] == pytest.approx(1.3, rel=0.02)
    assert peer(dear, "muon")["over_baseline"]["mean"] == pytest.approx(1.2 / 1.3, rel=0.02)


def test_every_optimizer_and_the_hybrid_are_tuned_by_as_many_runs(tmp_path: Path) -> None:
    compare_with = replace(JOB.compare, peers=("ademamix", "schedule_free"), lr_factors=(0.5, 1.0, 2.0))
    found, simulator, _ = compared(tmp_path, replace(JOB, compare=compare_with), hybrid_rate=0.5, gain=1.3)
    tuned = [run for run in simulator.ran if run.seed == 0 and run.train.steps == 600]
    frontier = 1  # the whole length is a frontier run too
    assert Counter((run.arm, run.train.optimizer) for run in tuned) == {
        ("baseline", "adamw"): 3 + frontier,
        ("baseline", "ademamix"): 3 + frontier,
        ("baseline", "schedule_free"): 3 + frontier,
        ("hybrid", "adamw"): 3,
    }
    rate = JOB.train.learning_rate
    assert found["tuning"]["hybrid"]["best"]["learning_rate"] == pytest.approx(rate / 2)
    assert found["learning_rate"] == rate
    arms = {run.arm: run.optimizer_settings.learning_rate / rate for run in simulator.ran if run.seed >= 2000}
    assert arms == {"baseline": 1.0, "hybrid": 0.5, "equal_steps": 1.0, "placebo": 1.0, "peer": 1.0}
    peers = [run for run in simulator.ran if run.train.optimizer != "adamw"]
    assert {run.train.clock_optimizer for run in peers} == {"adamw"}
    assert {run.train.schedule for run in peers if run.train.optimizer == "schedule_free"} == {"constant"}


def test_further_settings_are_tuned_one_after_another(tmp_path: Path) -> None:
    settings = replace(
        JOB.compare, peers=(), lr_warmup_fractions=(0.05, 0.1), weight_decays=(0.2,), betas=((0.9, 0.99),)
    )
    found, simulator, page = compared(tmp_path, replace(JOB, compare=settings))
    tried = found["tuning"]["baseline"]["tried"]
    assert Counter(row["setting"] for row in tried) == {
        "learning_rate": 3, "lr_warmup_fraction": 1, "weight_decay": 1, "betas": 1,
    }  # fmt: skip
    best = min(tried, key=lambda row: row["loss"])
    assert found["tuning"]["baseline"]["best"][best["setting"]] == best["value"]
    trained = next(run.train for run in simulator.ran if run.arm == "equal_steps")
    assert {name: getattr(trained, name) for name in found["tuning"]["baseline"]["best"]} == (
        found["tuning"]["baseline"]["best"]
    )
    assert "0.9, 0.99" in page


def test_a_hybrid_that_fails_on_a_seed_leaves_the_peers_without_a_figure(tmp_path: Path) -> None:
    found, _, page = compared(
        tmp_path, gain=1.3, broken=lambda run: "diverged" if run.arm == "hybrid" and run.seed == 2001 else None
    )
    assert found["verdict"] == "no gain shown"
    assert peer(found, "muon")["net_speedup"]["mean"] is None
    assert page.startswith("# No gain shown over stopping plain AdamW early")


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"compare": {"peers": ["adamw"]}}, "must name other optimizers than the job's own"),
        ({"compare": {"peers": ["muon", "muon"]}}, "each once"),
        ({"compare": {"peers": ["muno"]}}, "compare.peers"),
        ({"compare": {"peers": ["muon"]}, "train": {"optimizer_device": "host"}}, "compare.peers: train.optimizer is"),
    ],
)
def test_peers_that_can_not_be_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        job_from_dict(settings)


def test_a_task_that_makes_its_own_optimizer_has_no_peers() -> None:
    class Own(Task):
        def optimizer(self, model: nn.Module, settings: TrainConfig) -> Optimizer:
            return SGD(model.parameters(), lr=settings.learning_rate)

    check_peers(JOB, Task())
    check_peers(replace(JOB, compare=replace(JOB.compare, peers=())), Own())
    with pytest.raises(ConfigError, match="Own makes its own optimizer"):
        check_peers(JOB, Own())


def test_a_peer_with_dear_steps_has_a_frontier_that_reaches_the_hybrids_time(tmp_path: Path) -> None:
    found, _, _ = compared(tmp_path, gain=1.3, peers={"ademamix": (1.0, 1.0), "muon": (1.2, 1.6)})
    muon = peer(found, "muon")
    assert min(muon["frontier"]["times"]) < min(row["time"] for row in found["arms"]["hybrid"])
    assert muon["net_speedup"]["mean"] == pytest.approx(1.3 * 1.6 / 1.2, rel=0.03)
    assert len(muon["frontier"]["times"]) > len(peer(found, "ademamix")["frontier"]["times"])
