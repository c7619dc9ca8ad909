"""Two commands never write into one directory at the same time: the second is refused and changes nothing."""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from micro_jobs import micro_job
from simulated_runs import Simulator
from study_builder import build_study

from hybrid_ray.cli import main
from hybrid_ray.config import CompareConfig, JobConfig
from hybrid_ray.config.jobfile import dump_job
from hybrid_ray.errors import ConfigError, HybridRayError, StudyLocked
from hybrid_ray.evaluation.runner import Task
from hybrid_ray.ladder.directory import LadderDirectory
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.lock import lock_directory
from hybrid_ray.study import commands
from hybrid_ray.study.commands import compare_arms, tune_learning_rate
from hybrid_ray.study.rescore import rescore

HOLDS = "from pathlib import Path; from hybrid_ray.storage.lock import lock_directory; held = lock_directory(Path('.'))"


class Once(Simulator):
    """Does something when the first runs are asked for, then simulates them."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(write=True)
        self.act: Callable[[], None] | None = act

    def machine_of_runs(self, run: object, *, known: object = None) -> dict[str, object]:
        return self.fingerprint(None)

    def __call__(self, tasks: Sequence[Task]) -> list[RunResult]:
        act, self.act = self.act, None
        if act is not None:
            act()
        return super().__call__(tasks)


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return micro_job(tmp_path, compare=CompareConfig(interim_analyses=(3,), arms=("placebo",), peers=()))


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """What happens while the next command's first runs go on. Its runs are simulated."""

    def put(act: Callable[[], None]) -> None:
        executor = Once(act)
        monkeypatch.setattr(commands, "_executor", lambda *_: nullcontext(executor))
        monkeypatch.setattr("hybrid_ray.evaluation.comparison.compare.write_comparison", lambda _: None)  # slow

    return put


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize("command", [compare_arms, tune_learning_rate])
def test_a_second_command_is_refused_while_the_first_runs_and_after_an_error_none_is(
    command: Callable[..., object], job: JobConfig, tmp_path: Path, meanwhile: Callable[[Callable[[], None]], None]
) -> None:
    place = tmp_path / "place"

    def second_then_error() -> None:
        before = files(place)
        with pytest.raises(StudyLocked, match=r"place is in use by process \d+ since .*: wait for it, or stop it"):
            command(job, directory=place)
        assert files(place) == before
        raise HybridRayError("Ray has died")

    meanwhile(second_then_error)
    with pytest.raises(HybridRayError, match="Ray has died"):
        command(job, directory=place)
    meanwhile(lambda: None)
    command(job, directory=place)


@pytest.mark.parametrize("words", [["compare"], ["train"]], ids=lambda words: words[0])
def test_the_command_line_says_so_in_one_line_before_anything_starts(
    words: list[str], job: JobConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(dump_job(job))
    place = tmp_path / "place"
    with lock_directory(place):
        assert main([*words, str(tmp_path / "job.yaml"), "--out", str(place)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:]
    assert f"{place} is in use by process" in said[-1]
    assert files(place) == {}


def test_a_run_can_be_trained_where_a_command_was_killed(job: JobConfig, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLDS}; print('locked', flush=True); input()"],
        cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(StudyLocked, match=f"in use by process {holder.pid} since"):
            commands.train_once(job, arm="baseline", directory=place)
        holder.send_signal(signal.SIGKILL)
    assert commands.train_once(job, arm="baseline", directory=place).status == "finished"


def test_a_run_is_not_trained_inside_a_study(job: JobConfig, tmp_path: Path) -> None:
    with lock_directory(tmp_path / "study"):
        pass  # a study that has ended is one too
    inside = tmp_path / "study/trials/0000"
    with pytest.raises(ConfigError, match=r"0000 lies in .*study, which another command writes"):
        commands.train_once(job, arm="baseline", directory=inside)
    assert not inside.exists()


def test_a_ladder_is_refused_while_another_climbs_it(job: JobConfig) -> None:
    with LadderDirectory(job), pytest.raises(StudyLocked, match="is in use by process"), LadderDirectory(job):
        pass
    with LadderDirectory(job):
        pass


def test_scoring_again_is_refused_where_another_process_does_so_and_a_report_nowhere(tmp_path: Path) -> None:
    study = build_study(tmp_path / "studies" / "study")
    place = study / "rescored" / "score-penalty_weight-5"
    with lock_directory(study), lock_directory(place):
        with pytest.raises(StudyLocked, match="score-penalty_weight-5 is in use by process"):
            rescore(study, ["objective.penalty_weight=5"])
        assert files(place) == {}
        assert main(["report", str(study)]) == 0
