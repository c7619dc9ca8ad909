"""The manifests in jobs/cluster: valid by the published schemas, of the versions in constraints.txt, and of one mind
with `submit`.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from hybrid_ray.cli.parser import build_parser
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.ray_tune.submission.jobs import JOB_SETTINGS

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "jobs/cluster"
KUBERAY = ROOT / "tests/data/kuberay"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]  # type: ignore[index]
PYTHON = "py" + re.search(r"Python (3\.\d+)", (ROOT / "constraints.txt").read_text())[1].replace(".", "")  # type: ignore[index]


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return found


def cluster_spec(of: dict[str, Any]) -> dict[str, Any]:
    return of["spec"].get("rayClusterSpec", of["spec"])


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberays_own_schema_accepts_the_manifest_and_finds_a_misspelt_field(kind: str) -> None:
    schema, given = json.loads((KUBERAY / f"{kind}.json").read_text()), manifest(f"{kind.lower()}.yaml")
    validator = jsonschema.Draft202012Validator(schema)
    assert not [*validator.iter_errors(given)]
    cluster_spec(given)["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert "'volumeMount' was unexpected" in str([*validator.iter_errors(given)])


def test_the_job_on_kubernetes_is_the_cluster_with_a_command_of_ours() -> None:
    cluster, job = manifest("raycluster.yaml"), manifest("rayjob.yaml")
    assert cluster_spec(job) == cluster_spec(cluster)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == JOB_SETTINGS
    name, *words = shlex.split(job["spec"]["entrypoint"])
    assert name == "hybrid-ray"
    options = build_parser().parse_args(words)
    in_image = Path(options.job).relative_to("/home/ray/hybrid_ray")
    assert read_job(ROOT / in_image, options.set).studies_dir.startswith("/shared/")


def test_a_run_of_the_cluster_job_fits_on_one_node() -> None:
    (group,) = cluster_spec(manifest("raycluster.yaml"))["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    resources = read_job(ROOT / "jobs/gpt2_124m_cluster.yaml").resources
    for cpus, gpus in (
        (int(limits["cpu"]), int(limits["nvidia.com/gpu"])),
        (lambda of: (of["CPU"], of["GPU"]))(manifest("aws.yaml")["available_node_types"]["gpu"]["resources"]),
    ):
        assert cpus >= resources.workers * resources.cpus_per_worker
        assert gpus >= resources.workers * resources.gpus


def test_rays_cluster_launcher_accepts_its_file() -> None:
    given = manifest("aws.yaml")
    validate_config(prepare_config(given))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = given[commands][-1].partition("ray start ")[2].replace("$RAY_HEAD_IP", "head")
        assert parsed_by_ray("start", shlex.split(start))["disable_usage_stats"]
        assert "RAY_AUTH_MODE=token" in given[commands][-1]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml", "aws.yaml", "Dockerfile"])
def test_images_have_the_versions_that_were_tested(name: str) -> None:
    text = (CLUSTER / name).read_text()
    tags = re.findall(r"(?:rayproject/ray|hybrid-ray):(\S+)", text)
    assert tags
    assert all(tag.startswith(f"{RAY}-{PYTHON}") for tag in tags)
    assert re.findall(r"rayVersion: (\S+)", text) in ([], [RAY])


STUBS = {
    "scontrol": "printf 'node1\\nnode2\\n'",
    "srun": 'echo "srun $*" >> calls; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> calls; if [[ $1 == start ]]; then exec sleep 60; fi',
    "hybrid-ray": """
echo "hybrid-ray $*" >> calls
trap 'sleep 1; echo ended >> calls; exit 143' TERM
sleep 60 & wait""",
}


def test_the_slurm_script_starts_ray_on_all_nodes_and_lets_a_signalled_driver_end(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, body in STUBS.items():
        (tmp_path / ".venv/bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}/.venv/bin:$PATH\n")
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_NODELIST": "node[1-2]", "JOB_ID": "4711", "CPUS_PER_TASK": "20"}
    environment = {**os.environ, **{f"SLURM_{name}": value for name, value in slurm.items()}, "SLURM_GPUS_ON_NODE": "4"}
    command = ["bash", str(CLUSTER / "slurm.sh"), "resume", "/shared/studies/x"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as script:
        calls = tmp_path / "calls"
        for _ in range(600):
            if calls.exists() and "hybrid-ray" in calls.read_text() and calls.read_text().count("ray start") == 4:
                break
            time.sleep(0.1)
        script.send_signal(signal.SIGTERM)
        assert script.wait(timeout=60) == 143, script.stderr.read()  # type: ignore[union-attr]
    said = calls.read_text().splitlines()
    assert "hybrid-ray resume /shared/studies/x" in said
    assert said[-1] == "ended"  # it was waited for
    started = [parsed_by_ray("start", shlex.split(line)[2:]) for line in said if line.startswith("ray start")]
    (head,), (other,) = ([node for node in started if node["head"] is is_head] for is_head in (True, False))
    assert other["address"] == f"{head['node_ip_address']}:{head['port']}"
    assert all(node["num_cpus"] == 20 and node["num_gpus"] == 4 and node["block"] for node in (head, other))
    assert any("--nodelist=node1" in line for line in said)
    assert any("--exclude=node1" in line and "--nodes=1" in line for line in said)


def parsed_by_ray(command: str, words: list[str]) -> dict[str, Any]:
    """The options as Ray's own command line reads them; an unknown one is an error."""
    return ray_cli.commands[command].make_context(command, words).params
