"""The study store: nothing finished is lost, whatever interrupts a write."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from hybrid_ray.errors import StoreError
from hybrid_ray.storage.json_files import read_json, write_json_atomic
from hybrid_ray.storage.jsonl import JsonLines, read_jsonl
from hybrid_ray.storage.parquet import write_steps_parquet
from hybrid_ray.storage.study_store import StudyStore


def step(number: int, *, predicted: bool = False, loss: float | None = 1.5) -> dict[str, object]:
    return {
        "step": number,
        "phase": "predict" if predicted else "full",
        "predicted": predicted,
        "loss": loss,
        "confidence": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": None if predicted else 0.7,
        "seconds": 0.02,
        "level": "normal",
        "event": None,
    }


def fill(directory: Path, rows: int) -> None:
    store = StudyStore(directory)
    for number in range(rows):
        store.add_trial({"number": number, "state": "COMPLETE", "score": 1.0 + number})
    store.close()


def test_rows_come_back_in_order_and_as_parquet(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    assert [row["score"] for row in StudyStore(tmp_path).trials()] == [1.0, 2.0, 3.0]
    assert pandas.read_parquet(tmp_path / "trials.parquet")["number"].tolist() == [0, 1, 2]


def test_trials_with_different_columns_share_one_table(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.add_trial({"number": 0, "state": "COMPLETE", "score": 1.25})
    store.add_trial({"number": 1, "state": "FAIL", "error": "out of memory"})
    store.close()
    table = pandas.read_parquet(tmp_path / "trials.parquet")
    assert table["score"].isna().tolist() == [False, True]
    assert table["error"].isna().tolist() == [True, False]


def test_a_reopened_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    store = StudyStore(tmp_path)
    with pytest.raises(StoreError, match="already has trial 1"):
        store.add_trial({"number": 1, "state": "COMPLETE"})
    store.add_trial({"number": 2, "state": "PRUNED"})
    store.event("resumed", trials=2)
    again = StudyStore(tmp_path)
    assert [row["number"] for row in again.trials()] == [0, 1, 2]
    assert again.events()[0]["event"] == "resumed"


@pytest.mark.parametrize("tail", [b'{"number": 9, "sta', b"\x00\x00\x00", b'{"number": 9, "sta\n', b"7\n"])
def test_a_torn_last_line_is_dropped_and_appends_work(tmp_path: Path, tail: bytes) -> None:
    fill(tmp_path, 2)
    path = tmp_path / "trials.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert len(read_jsonl(path)) == 2, "a reader of a live study sees the whole rows only"
    with pytest.warns(UserWarning, match="incomplete line"):
        store = StudyStore(tmp_path)
    store.add_trial({"number": 2, "state": "COMPLETE"})
    assert [row["number"] for row in store.trials()] == [0, 1, 2]


def test_a_last_row_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b'{"number": 0, "state": "COMPLETE"}')
    with pytest.warns(UserWarning, match="nothing was lost"):
        store = StudyStore(tmp_path)
    store.add_trial({"number": 1, "state": "FAIL"})
    assert [row["number"] for row in store.trials()] == [0, 1]


def test_damage_in_the_middle_is_named_not_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "a"}\n{"eve\n{"event": "c"}\n')
    with pytest.raises(StoreError, match=r"events\.jsonl:2 is damaged"):
        read_jsonl(path)


def test_a_full_disk_keeps_the_previous_rows_and_the_next_append_works(tmp_path: Path) -> None:
    """A file size limit is a full disk one can have in a test: the write stops part of the way."""
    path = tmp_path / "rows.jsonl"
    rows = JsonLines(path)
    rows.append({"number": 0})
    before, limit = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
        with pytest.raises(StoreError, match="cannot be written"):
            rows.append({"number": 1, "text": "x" * 1000})
        with pytest.raises(StoreError, match="its previous content is unchanged"):
            write_json_atomic(tmp_path / "result.json", {"text": "x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"], "no litter"
    rows.append({"number": 1})
    assert [row["number"] for row in read_jsonl(path)] == [0, 1]


def test_a_failed_replace_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json_atomic(path, {"loss": 1.5})
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        write_json_atomic(path, {"loss": object()})
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(StoreError):
        write_json_atomic(tmp_path / "folder.json", {})
    assert read_json(path) == {"loss": 1.5}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.json", "result.json"]


def test_not_a_number_survives_the_round_trip(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"loss": float("inf"), "score": float("nan")})
    values = read_json(tmp_path / "a.json")
    assert values["loss"] == float("inf")
    assert values["score"] != values["score"]


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(StoreError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(StoreError, match=r"b\.json cannot be read"):
        read_json(tmp_path / "b.json")


def test_rows_are_changed_by_number_and_the_others_stay(tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    for number in range(3):
        store.add_trial({"number": number, "state": "FAIL", "error": "no disk"})
    store.amend_trials({1: {"error": "interrupted"}})
    store.add_trial({"number": 3, "state": "FAIL", "error": None})
    assert [row["error"] for row in StudyStore(tmp_path).trials()] == ["no disk", "interrupted", "no disk", None]


def test_steps_become_parquet_with_typed_columns_and_each_step_once(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "steps.jsonl", sync=False)
    for row in [step(1), step(2, loss=9.0), step(2, loss=1.25), step(3, predicted=True, loss=None)]:
        lines.append(row)
    kept = write_steps_parquet(tmp_path / "steps.jsonl", tmp_path / "steps.parquet")
    table = pandas.read_parquet(kept)
    assert table["step"].tolist() == [1, 2, 3]
    assert table["loss"].tolist()[:2] == [1.5, 1.25]
    assert pandas.isna(table["loss"][2])
    assert table["event"].isna().all()
    assert table["predicted"].dtype == bool
    assert [entry.name for entry in tmp_path.iterdir()] == ["steps.parquet"]


def test_a_killed_writer_loses_no_appended_row(tmp_path: Path) -> None:
    code = """if True:
        import os, signal, sys
        from hybrid_ray.storage.study_store import StudyStore
        store = StudyStore(sys.argv[1])
        for number in range(5):
            store.add_trial({"number": number, "state": "COMPLETE"})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(5))
