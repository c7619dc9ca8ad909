"""Faults 14, 16, 18, 27, 28 and 32 on a study's files: the right answer from what is intact, or a named error."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from study_builder import build_study

from hybrid_ray.errors import ConfigError, HybridRayError, StoreError
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.ray_tune.recovery.rebuild import open_whole_study, rebuild_rows
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.storage.json_files import read_json, write_json_atomic
from hybrid_ray.storage.jsonl import write_jsonl
from hybrid_ray.storage.lock import lock_directory
from hybrid_ray.storage.results_version import RESULTS_VERSION
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.directory import StudyDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*(damaged lines|incomplete line|out of range)")

DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": lambda path: _write(path, path.read_bytes()[: path.stat().st_size // 2]),
    "cut at a line": lambda path: _write(path, b"".join(path.read_bytes().splitlines(keepends=True)[:-1])),
    "flipped": lambda path: _write(path, _flipped(path.read_bytes(), 0.5)),
    "flipped near its end": lambda path: _write(path, _flipped(path.read_bytes(), 0.9)),
    "emptied": lambda path: _write(path, b""),
    "gone": lambda path: path.unlink(),
}
FILES = (
    "job.yaml", "environment.json", "events.jsonl", "trials.jsonl", "trials.parquet", "optuna.journal",
    "confirmation.json", "baseline/result.json", "frontier/0.40/result.json", "trials/0000/result.json",
    "trials/0000/steps.jsonl", "confirmation/baseline/baseline-1000/result.json",
)  # fmt: skip


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flipped(content: bytes, place: float) -> bytes:
    index = int(len(content) * place)
    return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]


def open_optuna(directory: Path) -> tuple[StudyStore, optuna.Study]:
    store, job = StudyStore(directory), load_study(directory).job
    space = load_space(job)
    return store, open_whole_study(store, job, lambda trial: space.ask(trial, job))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with an Optuna journal that was made from its rows."""
    directory = build_study(tmp_path_factory.mktemp("intact") / "study", trials=6, record=True)
    open_optuna(directory)
    return directory


@pytest.fixture
def study(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "study")
    return tmp_path / "study"


def tables(study: Study) -> dict[str, Any]:
    found = {name: getattr(study, name) for name in ("trials", "frontier", "baseline", "confirmation")}
    return {**found, "job": study.job, "statistics": study.statistics, "steps": study.steps(0)}


def same(one: Any, other: Any) -> bool:
    return bool(one.equals(other)) if isinstance(one, pd.DataFrame) else bool(one == other)


def test_the_files_are_those_of_a_study(intact: Path) -> None:
    assert [name for name in FILES if not (intact / name).is_file()] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_study_gives_the_right_tables_or_a_named_error(
    study: Path, intact: Path, name: str, damage: str
) -> None:
    DAMAGES[damage](study / name)
    try:
        found = tables(load_study(study))
    except HybridRayError:
        return
    wanted = tables(load_study(intact))
    assert [part for part in wanted if not same(found[part], wanted[part])] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_lost_rows_of_trials_are_rebuilt_from_their_results(study: Path, intact: Path, damage: str) -> None:
    wanted = load_study(intact).trials.set_index("number")
    DAMAGES[damage](study / "trials.jsonl")
    store, optuna_study = open_optuna_of(study, intact)
    results = [result for place in load_study(intact).frontier["run"] if (result := load_study(intact).result(place))]
    rebuild_rows(optuna_study, store, TrialScorer.from_results(results, load_study(intact).job.objective))
    found = load_study(study).trials.set_index("number").sort_index()
    assert found.index.tolist() == wanted.index.tolist()
    finished = wanted[wanted["state"] == "COMPLETE"].index
    assert found.loc[finished, "state"].tolist() == wanted.loc[finished, "state"].tolist()
    for column in ("loss", "speedup", "real_steps", "params_prediction_horizon"):
        assert found.loc[finished, column].tolist() == pytest.approx(wanted.loc[finished, column].tolist(), rel=1e-6)
    stopped = found.loc[wanted[wanted["state"] == "PRUNED"].index]
    assert set(stopped["end"]) <= {"interrupted", "stopped", "diverged"}  # without a result, they are tried again


def open_optuna_of(study: Path, intact: Path) -> tuple[StudyStore, optuna.Study]:
    job = load_study(intact).job
    store, space = StudyStore(study), load_space(job)
    return store, open_whole_study(store, job, lambda trial: space.ask(trial, job))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_journal_is_rebuilt_from_the_rows(study: Path, intact: Path, damage: str) -> None:
    DAMAGES[damage](study / "optuna.journal")
    _, found = open_optuna(study)
    _, wanted = open_optuna(intact)
    assert [(one.state, one.params, one.values) for one in found.trials] == [
        (one.state, one.params, one.values) for one in wanted.trials
    ]


def test_a_cut_job_is_refused_and_a_lost_one_written_again(study: Path) -> None:
    kept = read_json(study / "environment.json")
    write_json_atomic(study / "environment.json", {**kept, "identity": {"results_version": RESULTS_VERSION}})
    whole = (study / "job.yaml").read_text()
    (study / "job.yaml").write_text(whole[: whole.index("confirm:")])
    with pytest.raises(StoreError, match=r"lacks \w+\.\w+ and \d+ more settings that it had"):
        StudyDirectory.open(study)
    (study / "job.yaml").unlink()
    with StudyDirectory.open(study) as opened:
        assert opened.job == load_study(study).job
    assert (study / "job.yaml").read_text() == whole


def test_an_edited_job_is_named_and_reports_show_the_job_that_ran(
    study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (study / "job.yaml").write_text(
        (study / "job.yaml").read_text().replace("penalty_weight: 20.0", "penalty_weight: 30.0")
    )
    assert load_study(study).job.objective.penalty_weight == 20.0
    with StudyDirectory.open(study) as opened:
        assert opened.job.objective.penalty_weight == 30.0
    assert "objective.penalty_weight: 20.0 -> 30.0" in caplog.text


def test_a_folder_that_cannot_be_written_or_locked_is_refused_in_one_line(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (study / "lock").unlink(missing_ok=True)
    (study / "lock").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        lock_directory(study)
    (study / "lock").rmdir()

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(StoreError, match=r"file system without locks \(No locks available\)"):
        lock_directory(study)


def test_a_study_without_its_environment_is_not_continued(study: Path) -> None:
    (study / "environment.json").unlink()
    with pytest.raises(ConfigError, match=r"has no environment\.json"):
        StudyDirectory.open(study)


def test_a_rewritten_row_without_its_checksum_is_a_users_edit(study: Path) -> None:
    rows = load_study(study).trials.to_dict("records")
    write_jsonl(study / "trials.jsonl", StudyStore(study).trials())
    assert len(load_study(study).trials) == len(rows)
