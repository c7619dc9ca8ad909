"""A local run obeys nobody but its user: every port that a real one opens is attacked, and its token is looked for."""

import http.client
import ipaddress
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import pytest
from micro_jobs import micro_job

from hybrid_ray.config import ResourcesConfig
from hybrid_ray.config.jobfile import dump_job

pytestmark = [pytest.mark.ray_local, pytest.mark.slow]

DASHBOARD, AGENT = "/api/jobs/", "/api/job_agent/jobs/"
PATIENCE = 15  # seconds for an answer: a busy machine is slow
RUNTIME_ENVIRONMENTS = "/get_or_create_runtime_env"  # installs what it is told to
READS = ("JobInfoGcsService/GetAllJobInfo", "NodeManagerService/GetNodeStats")  # of GCS and raylet
DEEDS = (
    "InternalKVGcsService/InternalKVPut",
    "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
    "RayletDriver/Init",  # of a Ray client
    "RayletDriver/ClusterInfo",
)
SILENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL)  # speaks no gRPC
JOIN = """
import sys, ray
marker = sys.argv[2]
ray.init(address=sys.argv[1], log_to_driver=False)
ray.get(ray.remote(num_cpus=0)(lambda: open(marker, "w").close()).remote())
"""


@dataclass(kw_only=True)
class Attacked:
    """What a run opened, what attackers without, with a wrong and with the right token got, and what it left."""

    token: str
    gcs: str
    folder: Path
    mode: int
    addresses: dict[int, tuple[str, str]]  # by port: where it listens, the process
    command_lines: str
    agent: (
        bool | None
    )  # whether it has its job API: not where another Ray of this machine has its port; None: not known yet
    codes: dict[tuple[str, str, int], int] = field(default_factory=dict)
    calls: dict[tuple[str, str, int], grpc.StatusCode] = field(default_factory=dict)
    executed: set[str] = field(default_factory=set)
    written: list[Path] = field(default_factory=list)
    ended: int = -1


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Attacked:
    """A run of two workers, so with a dashboard, as a user starts it: nothing about authentication is set."""
    folder = tmp_path_factory.mktemp("door")
    job, home, log = folder / "job.yaml", folder / "home", folder / "studies" / "log"
    home.mkdir()
    log.parent.mkdir()
    job.write_text(dump_job(micro_job(folder, resources=ResourcesConfig(workers=2))))
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    plain["HOME"] = str(home)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hybrid_ray.cli", "--verbose", "run", str(job)],
            env=plain,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        found = _opened(process)
        _attack(found, plain, folder)
        found.written = [path for path in found.folder.rglob("*") if path.is_file() and _holds(path, found.token)]
        process.send_signal(signal.SIGTERM)
        found.ended = process.wait(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    found.written += [path for path in (folder / "studies").rglob("*") if path.is_file() and _holds(path, found.token)]
    found.written += home.rglob(".ray*")
    return found


def _opened(process: subprocess.Popen[bytes]) -> Attacked:
    """What the run has open once driver, workers and the job APIs of dashboard and agent listen."""
    for _ in range(600):
        assert process.poll() is None, "the run ended"
        found = _look(process)
        if found and found.agent is not None and any(_post(port, DASHBOARD, found.token) for port in found.addresses):
            listening = [who for _, who in found.addresses.values()]
            worker = any(who.startswith("ray::") and "Agent" not in who for who in listening)
            if worker and any("hybrid_ray.cli" in who for who in listening):
                return found
        time.sleep(0.2)
    raise AssertionError(f"not all listened in time: {found}")


def _look(process: subprocess.Popen[bytes]) -> Attacked | None:
    driver = psutil.Process(process.pid)
    addresses: dict[int, tuple[str, str]] = {}
    lines: list[list[str]] = []
    raylet: psutil.Process | None = None
    for each in [driver, *driver.children(recursive=True)]:
        try:
            lines.append(each.cmdline())
            raylet = each if each.name() == "raylet" else raylet
            for one in each.net_connections("inet"):
                if one.status == psutil.CONN_LISTEN:
                    addresses[one.laddr.port] = (one.laddr.ip, f"{each.name()} {' '.join(lines[-1])[-80:]}")
        except psutil.Error:
            continue
    if raylet is None:
        return None
    settings = dict(part.split("=", 1) for part in raylet.cmdline() if part.startswith("--") and "=" in part)
    folder = Path(settings["--temp_dir"]).parent
    agent = [path.read_text() for path in Path(settings["--session_dir"]).glob("dashboard_agent_listen_port_*")]
    return Attacked(
        token=raylet.environ().get("RAY_AUTH_TOKEN", ""),
        gcs=settings["--gcs-address"],
        folder=folder,
        mode=stat.S_IMODE(folder.stat().st_mode),
        addresses=addresses,
        agent=int(agent[0]) > 0 if agent and agent[0] else None,
        command_lines="\n".join(" ".join(line) for line in lines),
    )


def _holds(path: Path, token: str) -> bool:
    try:
        return bool(token) and token.encode() in path.read_bytes()
    except OSError:  # gone again
        return False


def _attack(found: Attacked, plain: dict[str, str], folder: Path) -> None:
    """Every attack without and with a wrong token; then with the right one, to see that they work."""
    tokens = {"none": None, "wrong": "0" * 64, "right": found.token}
    joins = [_join(found, plain, folder / f"{name} join", token) for name, token in tokens.items()]

    def ask(port: int) -> None:
        for name, token in tokens.items():
            for api in (AGENT,) if name == "right" else (DASHBOARD, AGENT, RUNTIME_ENVIRONMENTS):
                if code := _post(port, api, token, folder / f"{name} {'agent' if api == AGENT else 'dashboard'}"):
                    found.codes[name, api, port] = code
            for call, code in _call(port, token, READS if name == "right" else (*READS, *DEEDS)).items():
                found.calls[name, call, port] = code

    with ThreadPoolExecutor() as threads:
        list(threads.map(ask, found.addresses))
    for process in joins:
        process.wait(timeout=120)
    taken = any(code == 200 for (name, _, _), code in found.codes.items() if name == "right")
    for _ in range(300 if taken else 0):  # a job takes some seconds to start; those of the others were sent first
        if (folder / "right agent").exists():
            break
        time.sleep(0.2)
    found.executed = {path.name for name in tokens for path in folder.glob(f"{name} *")}


def _post(port: int, api: str, token: str | None, marker: Path | None = None) -> int:
    """The answer's code; 0 where nothing speaks HTTP. Without a marker nothing would be run."""
    body = json.dumps({"entrypoint": f"touch '{marker}'"}) if marker else "no job"
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{api}",
        data=b"" if api == RUNTIME_ENVIRONMENTS else body.encode(),
        headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
    )
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return 0 if error.code in (404, 405) else error.code  # another server
    except (OSError, http.client.HTTPException):
        return 0


def _call(port: int, token: str | None, calls: Sequence[str]) -> dict[str, grpc.StatusCode]:
    """What each gRPC method says to an empty request; nothing where nothing speaks gRPC."""
    said: dict[str, grpc.StatusCode] = {}
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        for call in calls:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=PATIENCE, metadata=metadata)
                said[call] = grpc.StatusCode.OK
            except grpc.RpcError as error:
                if error.code() in SILENT:
                    break
                said[call] = error.code()
    return said


def _join(found: Attacked, plain: dict[str, str], marker: Path, token: str | None) -> subprocess.Popen[bytes]:
    """A driver of its own that runs a task. By default Ray would look for the run at the machine's outward address."""
    environment = {
        **plain,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "3",
        "RAY_AUTH_MODE": "token" if token else "disabled",
        "RAY_AUTH_TOKEN": token or "",
    }
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, found.gcs, str(marker)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


SESSIONS = """
import json, os, sys
import ray
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
from hybrid_ray.config import JobConfig, ResourcesConfig
from hybrid_ray.ray_tune.cluster import ray_session

def state():
    return {
        "set": {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")},
        "sent": get_auth_headers_if_auth_enabled({}).get("authorization"),
    }

ray.init = lambda **options: states.append(state())  # Ray itself is not started
ray.cluster_resources, ray.shutdown = lambda: {"CPU": 1.0}, lambda: None
states = [state()]
for address in (*sys.argv[1:], "10.0.0.1:6379"):
    with ray_session(JobConfig(resources=ResourcesConfig(address=address))):
        pass
    states.append(state())
print(json.dumps(states))
"""


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "own"},
        {"RAY_AUTH_TOKEN": "own"},
        "path",
    ],
)
def test_a_users_own_settings_count_and_are_back_after_each_session(own: dict[str, str] | str, tmp_path: Path) -> None:
    """Two local sessions and one on a cluster, in one process. What is sent is what Ray would put into a request."""
    if own == "path":
        (tmp_path / "token").write_text("own")
        own = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    assert isinstance(own, dict)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-c", SESSIONS, "local", "local"],
        env={**kept, **own, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    outside, first, *others = json.loads(done.stdout.splitlines()[-1])
    between, second, after, joined, end = others
    assert outside["set"] == own
    assert outside == between == after == joined == end
    token, again = first["set"].get("RAY_AUTH_TOKEN"), second["set"].get("RAY_AUTH_TOKEN")
    if own.get("RAY_AUTH_MODE") == "disabled":
        assert first["sent"] is second["sent"] is None
    elif own:
        assert first["set"] == second["set"] == {"RAY_AUTH_MODE": "token", **own}
        assert first["sent"] == second["sent"] == "Bearer own"
    else:
        assert first["sent"] == f"Bearer {token}"
        assert second["sent"] == f"Bearer {again}"
        assert token != again
        assert len(token) == len(again) == 64
    assert not (tmp_path / ".ray").exists()


def test_what_a_run_opens_is_on_loopback_alone(attacked: Attacked) -> None:
    wide = {port: where for port, where in attacked.addresses.items() if not _is_loopback(where[0])}
    assert not [where for where in wide.values() if "RayTrainWorker" not in where[1]]  # theirs is torch.distributed's
    assert len(attacked.addresses) > 5


def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def test_only_the_token_gets_anything_executed(attacked: Attacked) -> None:
    assert {"right join"} <= attacked.executed <= {"right join", "right agent"}  # the attacks work, with the token
    assert {code for (name, _, _), code in attacked.codes.items() if name == "none"} == {401}
    assert {code for (name, _, _), code in attacked.codes.items() if name == "wrong"} == {403}
    assert {DASHBOARD, AGENT} <= {api for _, api, _ in attacked.codes}


def test_only_the_token_gets_a_call_answered(attacked: Attacked) -> None:
    answered = {(name, call) for (name, call, _), code in attacked.calls.items() if code == grpc.StatusCode.OK}
    assert answered  # the attacks work, with the token
    assert answered <= {("right", call) for call in READS}
    refused = {call for (_, call, _), code in attacked.calls.items() if code == grpc.StatusCode.UNAUTHENTICATED}
    assert refused >= {*READS}
    assert refused & {*DEEDS}  # which of them is there to ask depends on what the run is at


def test_the_token_is_in_no_file_no_log_and_no_command_line(attacked: Attacked) -> None:
    assert len(attacked.token) == 64
    assert attacked.token not in attacked.command_lines
    assert attacked.written == []
    assert attacked.mode == 0o700
    assert attacked.ended == 143
    assert not attacked.folder.exists()
