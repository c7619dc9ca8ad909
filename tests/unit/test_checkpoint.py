"""Checkpoints: a resumed run ends with the same bits, and damage costs steps, not the run."""

import json
import os
import pickle
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from micro_runs import CYCLES, Listener, micro_run
from rank_pool import RankError, RankPool
from safetensors.torch import load_file

from hybrid_ray.errors import CheckpointError
from hybrid_ray.run_result import RunResult, StepRecord
from hybrid_ray.training.checkpoint import files as checkpoint
from hybrid_ray.training.costs import RunCosts
from hybrid_ray.training.loop import train

RUN = micro_run(hybrid=CYCLES, steps=48, dropout=0.1, evaluations=2, checkpoint_every=7)
IN_PREDICT, IN_CORRECT = 22, 30


class Fault(Listener):
    """Does something bad once, at a given step."""

    def __init__(self, step: int, deed) -> None:
        super().__init__()
        self._at, self._deed = step, deed

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self._at:
            self._deed()


def fall_over() -> None:
    raise ConnectionError("a worker's own fault")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """The run with nothing in its way."""
    directory = tmp_path_factory.mktemp("whole")
    return train(RUN, directory=directory), directory


def final_weights(directory: Path) -> dict[str, torch.Tensor]:
    (path,) = (directory / "checkpoint").glob("step-*")
    assert path.name == "step-00000048"
    return load_file(path / "weights.safetensors")


def assert_same_end(result: RunResult, directory: Path, whole: tuple[RunResult, Path]) -> None:
    expected, there = whole
    mine, theirs = final_weights(directory), final_weights(there)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [(point.step, point.loss, point.real_steps) for point in result.curve] == [
        (point.step, point.loss, point.real_steps) for point in expected.curve
    ]
    assert result.tokens == expected.tokens
    assert result.replay == expected.replay
    assert result.phase_steps == expected.phase_steps


def test_the_faults_are_where_they_should_be(whole: tuple[RunResult, Path]) -> None:
    assert whole[0].replay.phases[IN_PREDICT - 1] == "P"
    assert whole[0].replay.phases[IN_CORRECT - 1] == "C"


@pytest.mark.parametrize("step", [IN_PREDICT, IN_CORRECT])
def test_a_run_that_fell_over_goes_on_to_the_same_bits(step: int, tmp_path: Path, whole) -> None:
    with pytest.raises(ConnectionError):
        train(RUN, directory=tmp_path, reporter=Fault(step, fall_over))
    listener = Listener()
    result = train(RUN, directory=tmp_path, reporter=listener)
    assert listener.steps[0].step > 7
    assert_same_end(result, tmp_path, whole)


def train_until_killed(directory: Path) -> None:
    train(RUN, directory=directory, reporter=Fault(IN_PREDICT, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path, whole) -> None:
    with pytest.raises(RankError, match="it died"):
        RankPool(1).run(train_until_killed, tmp_path)
    result = train(RUN, directory=tmp_path)
    assert result.steps == 48
    assert_same_end(result, tmp_path, whole)


def test_sigterm_checkpoints_and_leaves(tmp_path: Path, whole) -> None:
    run = replace(RUN, train=replace(RUN.train, checkpoint_every=0))
    before = signal.getsignal(signal.SIGTERM)
    stopped = train(run, directory=tmp_path, reporter=Fault(17, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (stopped.status, stopped.steps) == ("stopped", 17)
    assert signal.getsignal(signal.SIGTERM) == before
    result = train(run, directory=tmp_path)
    assert (result.status, result.steps) == ("finished", 48)
    assert result.curve[-1].loss == whole[0].curve[-1].loss
    assert result.train_seconds > stopped.train_seconds


def test_another_handler_does_not_end_the_run_before_its_state_is_kept(tmp_path: Path) -> None:
    """Ray's handler of SIGTERM leaves the process at once."""

    def leave(*_: object) -> None:
        raise SystemExit(15)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        stopped = train(RUN, directory=tmp_path, reporter=Fault(9, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (stopped.status, stopped.steps) == ("stopped", 9)
    found = checkpoint.load(tmp_path, RUN)
    assert found is not None
    assert found.step == 9


def test_ctrl_c_is_heard(tmp_path: Path) -> None:
    stopped = train(RUN, directory=tmp_path, reporter=Fault(9, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (stopped.status, stopped.steps) == ("stopped", 9)


def test_only_the_last_checkpoint_of_a_finished_run_stays(whole) -> None:
    assert [path.name for path in (whole[1] / "checkpoint").iterdir()] == ["step-00000048"]


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run directory with two checkpoints, of steps 25 (an evaluation) and 28."""
    with pytest.raises(ConnectionError):
        train(RUN, directory=tmp_path, reporter=Fault(IN_CORRECT, fall_over))
    assert [path.name for path in saved(tmp_path)] == ["step-00000025", "step-00000028"]
    return tmp_path


def saved(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoint").iterdir())


def cut(path: Path) -> None:
    os.truncate(path / "weights.safetensors", 100)


def flip(path: Path) -> None:
    content = bytearray((path / "shared.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "shared.pt").write_bytes(content)


def unmanifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose(path: Path) -> None:
    (path / "rank-0.pt").unlink()


@pytest.mark.parametrize("damage", [cut, flip, unmanifest, lose])
def test_a_damaged_checkpoint_is_passed_over(damage, interrupted: Path, whole, caplog) -> None:
    damage(saved(interrupted)[-1])
    listener = Listener()
    result = train(RUN, directory=interrupted, reporter=listener)
    assert listener.steps[0].step == 26
    assert "is not used" in caplog.text
    assert_same_end(result, interrupted, whole)


def test_none_usable_is_an_error(interrupted: Path) -> None:
    for path in saved(interrupted):
        cut(path)
    with pytest.raises(CheckpointError, match="none of the 2"):
        train(RUN, directory=interrupted)


def test_killed_between_write_and_rename(interrupted: Path) -> None:
    shutil.move(saved(interrupted)[-1], interrupted / "checkpoint" / ".step-00000028")
    listener = Listener()
    train(RUN, directory=interrupted, reporter=listener)
    assert listener.steps[0].step == 26
    assert len(saved(interrupted)) == 1


def test_another_configuration_is_refused(interrupted: Path) -> None:
    with pytest.raises(CheckpointError, match="another configuration"):
        train(replace(RUN, seed=1), directory=interrupted)


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("taken-over",))


def test_a_pickle_is_refused_and_not_executed(interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(interrupted)
    newest = saved(interrupted)[-1]
    evil = pickle.dumps(Malicious(), protocol=2)
    (newest / "rank-0.pt").write_bytes(evil)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["rank-0.pt"] = {"size": len(evil), "sha256": sha256(evil).hexdigest()}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        train(RUN, directory=interrupted)
    assert not (interrupted / "taken-over").exists()


@contextmanager
def full_disk() -> Iterator[None]:
    """A write past 20 kB fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_earlier_checkpoints(interrupted: Path, whole) -> None:
    before = saved(interrupted)
    with full_disk(), pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
        train(RUN, directory=interrupted)
    assert saved(interrupted) == before
    assert checkpoint.load(interrupted, RUN) is not None
    assert_same_end(train(RUN, directory=interrupted), interrupted, whole)


def save_again(directory: Path, step: int) -> None:
    checkpoint.save(directory, step, RUN, weights={"w": torch.zeros(100_000)}, shared={}, own={})


def test_a_whole_checkpoint_of_the_same_step_is_never_given_up_for_a_second_one(interrupted: Path) -> None:
    """As when a signal asks to stop in a step that has just been saved."""
    with full_disk():
        save_again(interrupted, 28)
    found = checkpoint.load(interrupted, RUN)
    assert found is not None
    assert found.step == 28
    assert "w" not in found.weights()
    assert [path.name for path in saved(interrupted)] == ["step-00000025", "step-00000028"]


def test_a_damaged_checkpoint_of_the_same_step_goes_once_its_replacement_is_whole(interrupted: Path) -> None:
    newest = saved(interrupted)[-1]
    cut(newest)
    with full_disk(), pytest.raises(CheckpointError, match="earlier checkpoints are intact"):
        save_again(interrupted, 28)
    assert saved(interrupted)[-1] == newest
    save_again(interrupted, 28)
    found = checkpoint.load(interrupted, RUN)
    assert found is not None
    assert (found.path, list(found.weights())) == (newest, ["w"])
    assert [path.name for path in saved(interrupted)] == ["step-00000025", "step-00000028"]


def test_damaged_checkpoints_ahead_of_a_run_do_not_push_out_whole_ones(interrupted: Path) -> None:
    for step in (33, 34):
        cut(Path(shutil.copytree(saved(interrupted)[1], interrupted / "checkpoint" / f"step-{step:08d}")))
    train(RUN, directory=interrupted, reporter=Fault(31, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    found = checkpoint.load(interrupted, RUN)
    assert found is not None
    assert found.step == 31


def test_a_directory_without_checkpoints_starts_afresh(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, RUN) is None


def test_checkpoints_of_an_older_version_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = micro_run(steps=20, evaluations=1, checkpoint_every=5)
    of_today = RunCosts.state_dict

    def without_costs_of_steps(self: RunCosts) -> dict[str, object]:
        return {name: value for name, value in of_today(self).items() if name != "of_steps"}

    with monkeypatch.context() as older:
        older.setattr(RunCosts, "state_dict", without_costs_of_steps)
        train(run, directory=tmp_path)
    with pytest.raises(CheckpointError, match="written by an older hybrid_ray"):
        train(run, directory=tmp_path)
