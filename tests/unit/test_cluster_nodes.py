"""Which nodes of a cluster train, and how many runs fit on them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from micro_jobs import micro_job

from hybrid_ray.config import JobConfig, ResourcesConfig
from hybrid_ray.processors import cpu_name
from hybrid_ray.ray_tune.cluster import Resources, resource_concurrency
from hybrid_ray.ray_tune.nodes.probe import answer
from hybrid_ray.ray_tune.nodes.room import runs_that_fit
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.node import UnfitNode, check_node, group_label, node_selector, write_nodes
from hybrid_ray.training.hardware.placement import choose_device
from hybrid_ray.training.ray_worker import was_preempted


def fit(*nodes: tuple[float, float], **resources: object) -> int:
    there = [Resources(cpus=cpus, gpus=gpus) for cpus, gpus in nodes]
    return runs_that_fit(JobConfig(resources=ResourcesConfig(**resources)), there)  # type: ignore[arg-type]


def test_a_worker_needs_its_resources_on_one_node() -> None:
    assert fit((3, 0), (3, 0), cpus_per_worker=2) == 2  # not 6 / 2
    assert fit((16, 2), (16, 0), gpus_per_worker=1.0) == 2
    assert fit((16, 2), gpus_per_worker=0.25) == 8
    assert fit((16, 2), gpus_per_worker=0.75) == 2
    assert fit() == 0


def test_the_workers_of_a_run_may_be_on_several_nodes() -> None:
    assert fit((16, 1), (16, 1), (16, 1), workers=2, gpus_per_worker=1.0) == 1
    assert fit((16, 1), (16, 1), (16, 1), (16, 1), workers=2, gpus_per_worker=1.0) == 2


def test_controllers_of_runs_with_several_workers_have_room() -> None:
    assert fit((2, 0), (2, 0), workers=2) == 1  # two runs would leave no CPU for their controllers
    assert fit((2, 0), (2, 0), (1, 0), workers=2) == 2
    assert fit((5, 0), (5, 0), workers=2, cpus_per_worker=2) == 2


def test_a_cluster_without_nodes_for_runs_is_no_error() -> None:
    resources = ResourcesConfig(address="10.0.0.1:6379", gpus_per_worker=1.0)
    job = JobConfig(resources=resources)
    assert resource_concurrency(job, Resources(cpus=4, gpus=0)) == 1
    assert (
        resource_concurrency(replace(job, resources=replace(resources, max_concurrent=8)), Resources(cpus=0, gpus=0))
        == 8
    )


def test_a_node_answers_what_it_is_and_writes_to_the_folder(tmp_path: Path) -> None:
    run = micro_job(tmp_path).run()
    question, place = tmp_path / "question", tmp_path / "answer"
    question.write_text("token")
    report = answer(question, place, "token", run)
    assert report.unshared is None
    assert report.machine == machine(run, choose_device(run))
    assert place.read_text() == "token"


@pytest.mark.parametrize(
    "content, folder, reason",
    [
        (None, True, "No such file or directory"),
        ("other", True, "another file"),
        ("token", False, "No such file or dir"),
    ],
)
def test_a_node_without_the_folder_says_so(content: str | None, folder: bool, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "question").write_text(content)
    place = tmp_path / ("answer" if folder else "missing/answer")
    report = answer(tmp_path / "question", place, "token", micro_job(tmp_path).run())
    assert report.unshared is not None
    assert reason in report.unshared


def test_a_run_refuses_a_node_of_another_kind_and_is_not_charged_for_it(tmp_path: Path) -> None:
    run, file = micro_job(tmp_path).run(), tmp_path / "nodes.json"
    check_node(None, run)  # a single machine
    here = machine(run, choose_device(run))
    write_nodes(file, machine=here, unfit={}, unshared={})
    check_node(file, run)
    check_node(file, replace(run, train=replace(run.train, threads=3)))  # of the run, not of the node
    write_nodes(file, machine={**here, "hardware": {"device": "another CPU"}}, unfit={}, unshared={})
    check_node(file, None)  # a controller does not train
    with pytest.raises(UnfitNode) as caught:
        check_node(file, run)
    assert str(caught.value) == f"its device is {cpu_name()!r}, not 'another CPU'"
    assert was_preempted(caught.value)
    assert was_preempted(RuntimeError(f"a remote UnfitNode: {caught.value}"))  # as Ray passes it on


def test_a_run_refuses_a_node_without_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UnfitNode, match="does not share the folder"):
        check_node(tmp_path / "missing" / "nodes.json", None)


def test_runs_are_kept_from_unfit_nodes_and_controllers_from_those_without_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    assert node_selector(None) == {}
    write_nodes(file, machine={}, unfit={}, unshared={})
    assert node_selector(file) == node_selector(file, controller=True) == {}
    write_nodes(file, machine={}, unfit={"b": "other CPU", "a": "no folder"}, unshared={"a": "no folder"})
    assert node_selector(file) == {"ray.io/node-id": "!in(a,b)"}
    assert node_selector(file, controller=True) == {"ray.io/node-id": "!in(a)"}
    assert json.loads(file.read_text())["unfit"]["b"] == "other CPU"


def test_runs_of_two_studies_have_different_labels(tmp_path: Path) -> None:
    assert group_label(tmp_path / "a", "train-1") != group_label(tmp_path / "b", "train-1")
    assert group_label(tmp_path / "a", "train-1").startswith(group_label(tmp_path / "a"))
