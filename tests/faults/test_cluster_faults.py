"""Faults 8, 25, 33 and 34: nodes of a real cluster that go, come, have other hardware, or do not share the folder.

The injector follows the heartbeats of the runs, which say on which node a run is, and kills that node.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from free_ports import free_ports
from micro_jobs import micro_job
from ray._common.utils import get_ray_address_file
from ray.cluster_utils import Cluster
from ray_warnings import RAY_WARNINGS

from hybrid_ray.config import ConfirmConfig, JobConfig, ObjectiveConfig, ResourcesConfig, SearchConfig, TrainConfig
from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation import frontier
from hybrid_ray.report.load import load_study
from hybrid_ray.study import stages
from hybrid_ray.study.pipeline import run_study
from hybrid_ray.training.telemetry.heartbeat import FOLDER

pytestmark = [
    pytest.mark.ray_local,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    *RAY_WARNINGS,
]


class Nodes:
    """A head that takes no runs, and nodes that do."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        # A lost node is noticed after 3 s instead of 15 s.
        health = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
        # Cluster writes its address into Ray's default folder, which is not there where no Ray has ever been started.
        Path(get_ray_address_file(None)).parent.mkdir(exist_ok=True)
        head = {"num_cpus": 0, "temp_dir": str(folder), "_system_config": health, **dashboard}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._cluster._shutdown_at_exit = False  # nodes are added in threads, where no signal handler can be set
        self.address: str = self._cluster.address

    def add(self, cpus: int = 1, **environment: str) -> None:
        self._cluster.add_node(wait=False, num_cpus=cpus, env_vars=environment or None)

    def kill(self, node_id: str) -> None:
        """SIGKILL for everything on a node."""
        (node,) = (node for node in self._cluster.worker_nodes if node.node_id == node_id)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_all(self) -> None:
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    assert not ray.is_initialized(), "a study would use that Ray: run tests/faults before tests/ray_local"
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder) / "ray")
        yield nodes
        nodes.end()


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    yield cluster
    cluster.kill_all()


@contextmanager
def follow(folder: Path, *planned: tuple[str, Callable[[str], object]], after: int = 0) -> Iterator[list[str]]:
    """Call each function with the id of the node on which a run with that name has passed step ``after``, in order."""
    done: list[str] = []
    over = threading.Event()

    def watch() -> None:
        for name, act in planned:
            while not over.is_set() and (node := beating(name)) is None:
                time.sleep(0.02)
            if node is not None and not over.is_set():
                act(node)
                done.append(name)

    def beating(name: str) -> str | None:
        for path in folder.glob(f"studies/*/.ray/{FOLDER}/*.json"):
            try:
                beat: dict[str, Any] = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            if name in beat["name"] and beat["step"] >= after:
                return str(beat["node"])
        return None

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield done
    over.set()
    thread.join()


def job_on(nodes: Nodes, folder: Path, **sections: Any) -> JobConfig:
    """Runs of a second or two, with checkpoints. Every trial that nothing happens to is complete."""
    train = TrainConfig(
        steps=120, batch_size=4, sequence_length=16, evaluations=4, calibration_steps=5, learning_rate=1e-2,
        checkpoint_every=20,
    )  # fmt: skip
    usual = {
        "resources": ResourcesConfig(address=nodes.address),
        "search": SearchConfig(trials=4, scheduler="none", max_failures=0),
        "objective": ObjectiveConfig(max_degradation=100.0),
        "confirm": ConfirmConfig(best=0),
    }
    return micro_job(folder, train=train, **usual | sections)


@pytest.fixture
def two_frontier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of six, because every run takes some seconds to start."""
    all_runs = stages.frontier_runs
    monkeypatch.setattr(
        stages, "frontier_runs", lambda job: {key: run for key, run in all_runs(job).items() if key in (0.4, 1.0)}
    )
    monkeypatch.setattr(frontier, "FEWEST", 2)
    monkeypatch.setattr(frontier, "_noise", lambda points: frontier.LEAST_NOISE)


@pytest.mark.usefixtures("two_frontier_runs")
def test_a_study_outlives_its_nodes_in_every_stage(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins on a cluster without nodes for runs, loses all nodes during the trials, and goes on."""

    def replace_node(node: str) -> None:
        nodes.add()
        nodes.kill(node)

    def scale_to_zero(node: str) -> None:
        nodes.kill_all()
        add_once_said("the nodes of the cluster cannot hold a run now")

    def add_once_said(what: str) -> None:
        while what not in caplog.text:
            time.sleep(0.1)
        nodes.add()

    late = threading.Thread(target=add_once_said, args=("no node of the cluster can take a worker",), daemon=True)
    late.start()
    plan = (("frontier/", replace_node), ("trial 0", scale_to_zero), ("hybrid-", replace_node))
    job = job_on(nodes, tmp_path, confirm=ConfirmConfig(best=1, seeds=3))
    with follow(tmp_path, *plan) as done:
        outcome = run_study(job)
    assert done == [name for name, _ in plan]
    assert outcome.status == "finished"
    study = load_study(outcome.directory)
    assert study.trials["state"].tolist() == ["COMPLETE"] * 4
    assert set(study.frontier["status"]) == {"finished"}
    assert study.statistics is not None
    assert set(study.confirmation["status"]) == {"finished"}
    assert not late.is_alive()


SITE = """
import os, pathlib
read = pathlib.Path.read_text
def read_text(path, *arguments, **options):
    if str(path) == "/proc/cpuinfo" and os.environ.get("OTHER_CPU"):
        return "model name : Another CPU\\n"
    if str(path).startswith(os.environ.get("HIDDEN") or "nothing"):
        raise FileNotFoundError(2, os.strerror(2), str(path))
    return read(path, *arguments, **options)
pathlib.Path.read_text = read_text
"""
"""Run by the processes of a node at their start: it has another CPU, or does not share a folder."""


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, str]:
    """The environment of a node whose processes run `SITE`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_runs_are_kept_from_nodes_with_another_cpu(
    nodes: Nodes, tmp_path: Path, odd: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Of one such node that is there from the start, and of one that joins while a run waits for room."""
    nodes.add(2)
    nodes.add(1, OTHER_CPU="1", **odd)
    job = job_on(nodes, tmp_path, resources=ResourcesConfig(address=nodes.address, max_concurrent=3))
    with follow(tmp_path, ("frontier/", lambda node: nodes.add(1, OTHER_CPU="1", **odd))) as done:
        outcome = run_study(job)
    assert done == ["frontier/"]
    assert outcome.status == "finished"
    study = load_study(outcome.directory)
    assert study.trials["state"].tolist() == ["COMPLETE"] * 4
    assert set(study.frontier["status"]) == {"finished"}
    assert "trains no run of this study: its device is 'Another CPU', not" in caplog.text


def test_a_node_that_does_not_share_the_folder_is_refused_before_anything_trains(
    nodes: Nodes, tmp_path: Path, odd: dict[str, str]
) -> None:
    nodes.add()
    nodes.add(1, HIDDEN=str(tmp_path / "studies"), **odd)
    job = job_on(nodes, tmp_path)
    with pytest.raises(ConfigError, match=rf"cannot use {tmp_path}/studies/micro \(No such file.*studies_dir"):
        run_study(job)
    assert not list((tmp_path / "studies").rglob("result.json"))


@pytest.mark.usefixtures("two_frontier_runs")
def test_gangs_outlive_their_nodes(nodes: Nodes, tmp_path: Path) -> None:
    """Runs of two workers, one on each node: one run has room, and the next one waits in Ray. In frontier and trials a
    node under a run is killed and another one added.
    """

    def replace_node(node: str) -> None:
        nodes.add(3)
        nodes.kill(node)

    nodes.add(3)
    nodes.add(3)
    job = job_on(
        nodes, tmp_path,
        resources=ResourcesConfig(address=nodes.address, workers=2, cpus_per_worker=2, max_concurrent=2),
        search=SearchConfig(trials=2, scheduler="none", max_failures=0),
    )  # fmt: skip
    with follow(tmp_path, ("frontier/", replace_node), ("trials/", replace_node)) as done:
        outcome = run_study(job)
    assert done == ["frontier/", "trials/"]
    assert outcome.status == "finished"
    study = load_study(outcome.directory)
    assert study.trials["state"].tolist() == ["COMPLETE"] * 2
    assert set(study.frontier["status"]) == {"finished"}
