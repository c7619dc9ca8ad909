"""Processors as a container sees them: its quota of time counts, not the machine's cores."""

import os
from pathlib import Path

import pytest

from hybrid_ray import doctor, processors
from hybrid_ray.ray_tune.cluster import local_resources


@pytest.mark.parametrize(
    "files, usable",
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_a_containers_quota_bounds_what_is_usable_everywhere(
    files: dict[str, str], usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(processors, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert processors.cpu_count() == usable
    assert local_resources().cpus == usable
    said = next(finding.text for finding in doctor.examine() if finding.what == "processors")
    assert said.startswith(f"{usable} usable")
