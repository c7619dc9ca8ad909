"""A comparison, and the tuning of a ladder's rung, that are continued keep to the kind of machine they began on."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from micro_jobs import micro_job
from simulated_runs import Simulator

from hybrid_ray.config import CompareConfig, JobConfig, RunConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.study import commands
from hybrid_ray.study.commands import compare_arms, tune_learning_rate


def machine(device: str) -> dict[str, Any]:
    return {"hardware": {"device": device, "threads": 1, "workers": 1}, "software": {"torch": "2.9"}}


@dataclass
class Cluster(Simulator):
    """Nodes of these kinds, of which the first has the most room. Runs are simulated on the kind that was chosen."""

    kinds: tuple[str, ...] = ()

    def machine_of_runs(self, run: RunConfig, *, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        there = [machine(kind) for kind in self.kinds]
        chosen = known if known in there else there[0]
        self.fingerprint = lambda _: dict(chosen)
        return dict(chosen)


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    compare = CompareConfig(interim_analyses=(3,), arms=("placebo",), peers=())
    return micro_job(tmp_path, compare=compare)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cluster]:
    """The next command runs on a cluster with these kinds of nodes."""

    def put(*kinds: str) -> Cluster:
        cluster = Cluster(kinds=kinds, write=True)
        monkeypatch.setattr(commands, "_executor", lambda *_: nullcontext(cluster))
        monkeypatch.setattr("hybrid_ray.evaluation.comparison.compare.write_comparison", lambda _: None)  # slow
        return cluster

    return put


def compared(job: JobConfig, folder: Path) -> None:
    compare_arms(job, directory=folder)


def tuned(job: JobConfig, folder: Path) -> None:
    tune_learning_rate(job, directory=folder)


@pytest.mark.parametrize("command, instead", [(compared, "another folder with --out"), (tuned, "remove the folder")])
def test_what_is_continued_keeps_to_its_kind_of_node_and_is_refused_without_one(
    command: Callable[[JobConfig, Path], None], instead: str, job: JobConfig, tmp_path: Path, on: Callable[..., Cluster]
) -> None:
    place = tmp_path / "place"
    first = on("A100", "H200")
    command(job, place)
    assert first.ran
    finished = {path: path.read_bytes() for path in place.rglob("result.json")}

    more_room_elsewhere = on("H200", "A100")
    command(job, place)
    assert more_room_elsewhere.ran == []

    others_only = on("H200")
    with pytest.raises(ConfigError, match=r"machine\.hardware\.device: 'A100' -> 'H200'") as refused:
        command(job, place)
    assert instead in refused.value.problems[-1]
    assert others_only.ran == []
    assert {path: path.read_bytes() for path in place.rglob("result.json")} == finished

    begun_there = replace(job, name="other")
    command(begun_there, tmp_path / "other")
    assert others_only.ran
