"""Which nodes of a cluster may train the runs of a study. The driver finds out and writes it to a file that runs read.

A run checks its node before it trains (`check_node`): a node may have joined a moment ago. A run that finds itself on
an unfit node raises `UnfitNode`, which does not count as a failure: it is started again, on another node.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from hybrid_ray.config import RunConfig
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.training.hardware.fingerprint import machine
from hybrid_ray.training.hardware.placement import choose_device

__all__ = ["RUN_LABEL", "UnfitNode", "check_node", "group_label", "node_selector", "other_machine", "write_nodes"]

RUN_LABEL = "hybrid-ray/run"
"""A label that no node has. A condition on it excludes no node, but names the run that a placement group is of."""

_NODE_ID = "ray.io/node-id"  # a label that Ray gives to every node


class UnfitNode(HybridRayError):
    """This node cannot train runs of the study: it has other hardware or software, or not the study's folder."""


def write_nodes(
    file: Path, *, machine: Mapping[str, Any], unfit: Mapping[str, str], unshared: Mapping[str, str]
) -> None:
    """Write what the driver knows.

    Args:
        machine: hardware and software that all runs must have (`fingerprint.machine`).
        unfit: by id, the nodes that must not train, and why.
        unshared: those of them that do not have the study's folder, so that not even a trial's controller can run
            there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps({"machine": machine, "unfit": unfit, "unshared": unshared}).encode())


def check_node(file: Path | None, run: RunConfig | None) -> None:
    """Check the node that this process runs on. ``file``: None on a single machine, where there is nothing to check.

    Args:
        run: trained by this process; None if the process only controls others.

    Raises:
        UnfitNode: the node is not like those of the study's other runs, or does not have the study's folder.
    """
    if file is None:
        return
    try:
        expected = json.loads(file.read_text(encoding="utf-8"))["machine"]
    except OSError as error:
        raise UnfitNode(f"this node cannot read {file} ({error.strerror}), so it does not share the folder") from error
    if run is None:
        return
    try:
        found = machine(run, choose_device(run))
    except ConfigError as error:
        raise UnfitNode(str(error)) from error
    if difference := other_machine(expected, found):
        raise UnfitNode(difference)


def other_machine(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How a node differs from those of the study's other runs, in words; None if it does not. Threads and workers are
    of a run, not of a node.
    """
    here, there = _of_node(expected), _of_node(found)
    different = [
        f"its {name} is {there[name]!r}, not {value!r}" for name, value in here.items() if there[name] != value
    ]
    return ", ".join(different) or None


def _of_node(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {"device": machine["hardware"]["device"], **machine["software"]}


def node_selector(file: Path | None, *, controller: bool = False) -> dict[str, str]:
    """Ray's label selector that excludes the unfit nodes; empty if all nodes are fit.

    Args:
        controller: for a process that only holds a trainer, for which other hardware is no hindrance.
    """
    if file is None:
        return {}
    nodes = json.loads(file.read_text(encoding="utf-8"))["unshared" if controller else "unfit"]
    return {_NODE_ID: f"!in({','.join(sorted(nodes))})"} if nodes else {}


def group_label(storage: Path, name: str = "") -> str:
    """The value of `RUN_LABEL` for a run in ``storage``. All runs in ``storage`` share the prefix that ``""`` gives."""
    return f"{sha256(str(storage.resolve()).encode()).hexdigest()[:12]}.{name}"
