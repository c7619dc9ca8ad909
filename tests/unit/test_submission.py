"""The commands for a cluster when the connection breaks off or something else than a cluster answers.

Ray's own client asks a server on loopback, which answers as a dashboard does until it is told to break.
"""

import base64
import gc
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import ray

from hybrid_ray.cli import main
from hybrid_ray.ray_tune.submission import dashboard, fetch, running

pytestmark = [  # Ray's client gives these
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning"),
]

FAULTS = ("closes", "error", "page", "other")
"""It closes the connection, answers with status 500, with the page of some other server, or with other JSON."""


class Dashboard(ThreadingHTTPServer):
    """Serves one job, x. ``breaks``: the fault at the n-th request of a kind and at all later ones."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.breaks: tuple[str, int, str] | None = None
        self.status, self.logs, self.lines = "SUCCEEDED", ["all that it said\n"], ["all that ", "it said\n"]
        self.file = b""
        self.over = Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, kind: str) -> str | None:
        self.asked.append(kind)
        if self.breaks is None or self.breaks[0] != kind or self.asked.count(kind) < self.breaks[1]:
            return None
        return self.breaks[2]

    def answers(self) -> dict[str, Any]:
        status = "STOPPED" if "stop" in self.asked else self.status
        job: dict[str, Any] = {
            "type": "SUBMISSION",
            "entrypoint": "x",
            "status": status,
            "message": "m",
            "driver_node_id": "n",
        }
        job["runtime_env"] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "soon"}}  # then it is Ray's default
        return {
            "version": {"ray_version": ray.__version__},
            "package": {},
            "submit": {"job_id": "x", "submission_id": "x"},
            "state": job,
            "log": {"logs": self.logs[min(self.asked.count("log"), len(self.logs)) - 1]},
            "stop": {"stopped": True},
        }


class Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        kind, fault = self._kind(), self.server.fault(self._kind())
        if fault == "silent":
            self.server.over.wait(60)
        elif fault == "error":
            self._send(500, b"Traceback (most recent call last):\n  File x\nKeyError: 'x'")
        elif fault == "page":
            self._send(200, b"<html>\n<body>A proxy</body>\n</html>")
        elif fault == "other":
            self._send(200, b'[{"status": "NONSENSE", "logs": null}]')
        elif fault == "cut":
            self._send(200, self.server.file[:-20], length=len(self.server.file))
        elif fault == "changed":
            self._send(200, self.server.file[:-1] + b"!")
        elif kind == "tail" and fault != "closes":
            self._tail(breaks=fault == "breaks")
        elif kind == "file" and fault != "closes":
            self._send(200, self.server.file)
        elif fault is None:
            self._send(200, json.dumps(self.server.answers()[kind]).encode())
        # else: the connection closes without an answer

    do_POST = do_GET

    def _kind(self) -> str:
        parts = self.path.partition("?")[0].strip("/").split("/")[1:]
        if parts[0] != "jobs":
            return {"version": "version", "packages": "package", "v0": "file"}[parts[0]]
        ends = {"logs": "log", "tail": "tail", "stop": "stop", "x": "state", "jobs": "submit"}
        return ends[parts[-1]]

    def _send(self, status: int, body: bytes, *, length: int | None = None) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def _tail(self, *, breaks: bool) -> None:
        """The log over a WebSocket (RFC 6455), which closes as it should unless it breaks."""
        self.protocol_version = "HTTP/1.1"
        key = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key).digest()).decode())
        self.end_headers()
        for line in self.server.lines:
            self.wfile.write(bytes([0x81, len(line)]) + line.encode())
        self.wfile.flush()
        if not self.server.lines:
            self.server.over.wait(60)
        elif not breaks:
            self.wfile.write(bytes([0x88, 2]) + (1000).to_bytes(2, "big"))
            self.rfile.read(8)  # the client closes too

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for module in (running, fetch):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    with Dashboard() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()


@pytest.fixture
def asks(cluster: Dashboard, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on the cluster; returns its exit code and what it wrote to stdout and stderr."""

    def ask(*words: str) -> tuple[int, str, str]:
        code = main([*words, "--address", cluster.address])
        out = capsys.readouterr()
        return code, out.out, out.err

    return ask


def the_error(said: str) -> str:
    """The one error line, with which the output ends."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors == said.splitlines()[-1:], said
    assert "Traceback" not in said.replace(errors[0], "")
    return errors[0]


def packed(cluster: Dashboard) -> None:
    """The job has packed a folder with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("./job.yaml")
        info.size = 7
        tar.addfile(info, io.BytesIO(b"name: x"))
    cluster.file, cluster.status = buffer.getvalue(), "RUNNING"
    digest = hashlib.sha256(cluster.file).hexdigest()
    line = json.dumps({"archive": "x.tar.gz", "bytes": len(cluster.file), "sha256": digest})
    cluster.logs = ["Running entrypoint\n", f"Running entrypoint\n{line[:20]}", f"Running entrypoint\n{line}\n"]


def test_commands_on_a_cluster_that_answers(
    asks: Callable[..., tuple[int, str, str]], cluster: Dashboard, tmp_path: Path
) -> None:
    assert asks("submit", "resume", "/shared/x") == (0, "all that it said\n", "submitted as x\n")
    assert asks("logs", "x") == (0, "all that it said\n", "")
    packed(cluster)
    assert asks("fetch", "/shared/x", str(tmp_path / "here"))[:2] == (0, f"{tmp_path / 'here'}\n")
    assert (tmp_path / "here/job.yaml").read_text() == "name: x"
    assert cluster.asked[-1] == "stop"
    cluster.asked.clear()
    cluster.logs = ["all", "all it said"]
    assert asks("stop", "x") == (0, " it said", "x was asked to stop; waiting up to 3 s\n")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("words", [("logs", "x"), ("stop", "x"), ("fetch", "/s/x"), ("submit", "resume", "/s/x")])
def test_what_answers_there_is_no_cluster(
    words: tuple[str, ...], fault: str, asks: Callable[..., tuple[int, str, str]], cluster: Dashboard
) -> None:
    cluster.breaks = ("version", 1, fault)
    code, _, said = asks(*words)
    assert code == 1
    assert f"no Ray cluster answers at {cluster.address}: " in the_error(said)
    assert set(cluster.asked) == {"version"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "words, kind, number, asked, then",
    [
        ("logs x", "state", 1, "the state of x", "the job goes on; ask again: hybrid-ray logs x --address"),
        ("logs x", "state", 2, "the state of x", "the job goes on; ask again: hybrid-ray logs x --address"),
        ("stop x", "state", 1, "the state of x", "ask again: hybrid-ray stop x --address"),
        ("stop x", "log", 1, "the log of x", "ask again: hybrid-ray stop x --address"),
        ("stop x", "stop", 1, "to stop x", "ask again: hybrid-ray stop x --address"),
        ("stop x", "state", 2, "the state of x", "ask again: hybrid-ray stop x --address"),
        ("stop x", "log", 2, "the log of x", "ask again: hybrid-ray stop x --address"),
        ("submit resume /s/x", "submit", 1, "the submission", "ray job list --address"),
        ("submit resume /s/x", "state", 1, "the state of x", "the job goes on; ask again: hybrid-ray logs x --address"),
    ],
)
def test_a_connection_that_breaks_off_is_one_clear_error(
    words: str, kind: str, number: int, asked: str, then: str, fault: str,
    asks: Callable[..., tuple[int, str, str]], cluster: Dashboard,
) -> None:  # fmt: skip
    cluster.status = "RUNNING" if words.startswith("stop") else "SUCCEEDED"
    cluster.breaks = (kind, number, fault)
    code, _, said = asks(*words.split())
    error = the_error(said)
    assert code == 1
    assert cluster.address in error
    assert asked in error
    assert f"{then} {cluster.address}" in error
    assert len(error) < 700


@pytest.mark.parametrize("fault", ["closes", "error"])  # Ray's client takes any other answer for a yes
def test_a_connection_that_breaks_off_while_the_code_is_sent(
    fault: str, asks: Callable[..., tuple[int, str, str]], cluster: Dashboard
) -> None:
    cluster.breaks = ("package", 1, fault)
    code, _, said = asks("submit", "resume", "/s/x")
    assert code == 1
    assert cluster.address in the_error(said)
    assert "submit" not in cluster.asked


@pytest.mark.parametrize(
    "kind, fault",
    [*product(["submit", "state", "log", "file"], FAULTS), ("file", "cut"), ("file", "changed")],
)
def test_a_fetch_that_breaks_off_leaves_everything_as_it_was(
    kind: str, fault: str, asks: Callable[..., tuple[int, str, str]], cluster: Dashboard, tmp_path: Path
) -> None:
    packed(cluster)
    cluster.breaks = (kind, 1, fault)
    (tmp_path / "kept").write_text("kept")
    code, _, said = asks("fetch", "/s/x", str(tmp_path / "here"))
    error = the_error(said)
    assert code == 1
    assert cluster.address in error
    assert f"hybrid-ray fetch /s/x {tmp_path / 'here'} --address" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    assert ("stop" in cluster.asked) == (kind != "submit")


def test_a_fetched_study_is_there_even_if_its_archive_cannot_be_removed(
    asks: Callable[..., tuple[int, str, str]], cluster: Dashboard, tmp_path: Path
) -> None:
    packed(cluster)
    cluster.breaks = ("stop", 1, "closes")
    assert asks("fetch", "/s/x", str(tmp_path / "here"))[0] == 0
    assert (tmp_path / "here/job.yaml").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(
    asks: Callable[..., tuple[int, str, str]], cluster: Dashboard, tmp_path: Path
) -> None:
    packed(cluster)
    (tmp_path / "file").write_text("kept")
    code, _, said = asks("fetch", "/s/x", str(tmp_path / "file/here"))
    assert code == 1
    assert f"{tmp_path / 'file/here'} cannot be written: " in the_error(said)


@pytest.mark.parametrize("fault", ["breaks", *FAULTS])
def test_a_log_that_breaks_off_is_said_and_the_job_waited_for(
    fault: str, asks: Callable[..., tuple[int, str, str]], cluster: Dashboard
) -> None:
    cluster.breaks = ("tail", 1, fault)
    code, out, said = asks("logs", "x")
    assert code == 0
    assert out == ("all that it said\n" if fault == "breaks" else "")
    (line,) = said.splitlines()
    assert line.startswith("the log broke off (")
    assert line.endswith(f"waiting for the job. The whole log: hybrid-ray logs x --address {cluster.address}")


def test_a_quiet_log_of_a_cluster_that_has_gone_is_not_waited_for(
    asks: Callable[..., tuple[int, str, str]], cluster: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(dashboard, "_SILENT_SECONDS", 0.3)
    cluster.lines, cluster.status, cluster.breaks = [], "RUNNING", ("state", 4, "silent")
    code, _, said = asks("logs", "x")
    assert code == 1
    error = the_error(said)
    assert f"the connection to {cluster.address} broke off when asked for the state of x (" in error
    assert "timed out" in error
    gc.collect()  # so that the warning of a connection that Ray's client left open comes here


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:port", "https://"])
def test_an_address_that_is_none_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "x", "--address", address]) == 2
    assert "must be the URL of the dashboard" in capsys.readouterr().err
