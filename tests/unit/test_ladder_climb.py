"""Whole ladders over simulated studies: what is carried, resumed, extended, and said in the report."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from study_builder import build_study, confirmed, keep, run_result, trial_row

from hybrid_ray.cli import main
from hybrid_ray.config import DataConfig, JobConfig, LadderConfig, ModelConfig, ObjectiveConfig, SearchConfig
from hybrid_ray.config.jobfile import dump_job, read_job
from hybrid_ray.errors import ConfigError, HybridRayError
from hybrid_ray.ladder import climb as climbing
from hybrid_ray.ladder.climb import climb
from hybrid_ray.ladder.plan import plan_ladder
from hybrid_ray.ladder.results import Ladder, Rung, load_ladder
from hybrid_ray.ladder.tables import results
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.report.load import load_study
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.pipeline import Outcome, run_study

RUNGS = {"small": {}, "medium": {"model.preset": "pico", "train.steps": 900}, "large": {"model.preset": "nano"}}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def job(tmp_path: Path, cache: Path) -> JobConfig:
    return JobConfig(
        name="climb",
        studies_dir=str(tmp_path),
        model=ModelConfig(preset="micro"),
        data=DataConfig(max_bytes=200_000, heldout_tokens=2048, cache_dir=str(cache)),
        train=replace(JobConfig().train, sequence_length=32),
        objective=ObjectiveConfig(mode="net"),
        search=SearchConfig(trials=12),
        ladder=LadderConfig(rungs=RUNGS, learning_rate="fixed", best=3, others=3, trials_factor=0.7),
    )


class SimulatedStudies:
    """Stands in for Ray: writes the study that a job would leave, from a law of the settings.

    ``killed_after``: the names of studies whose driver is killed once, half way.
    """

    def __init__(self, killed_after: Sequence[str] = ()) -> None:
        self.begun: list[str] = []
        self._killed = set(killed_after)

    def run(self, job: JobConfig, *, source: Path | None = None) -> Outcome:
        directory = Path(job.studies_dir) / job.name
        self.begun.append(job.name)
        directory.mkdir()
        write_atomic(directory / "job.yaml", dump_job(job).encode())
        store = StudyStore(directory)
        store.write_json("environment.json", {"python": "3.11"})
        store.event("created")
        for length in job.frontier.lengths:
            place = "baseline" if length == 1.0 else f"frontier/{length:.2f}"
            keep(directory / place, run_result("baseline" if length == 1.0 else "frontier", steps=round(600 * length)))
        store.close()
        if job.name in self._killed:
            self._killed.discard(job.name)
            raise KeyboardInterrupt("killed")
        return self.resume(directory)

    def resume(self, directory: Path) -> Outcome:
        job = read_job(directory / "job.yaml")
        space, store, study = (
            load_space(job),
            StudyStore(directory),
            optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)),
        )
        for name, values in space.presets.items():
            study.enqueue_trial(dict(values), user_attrs={"preset": name})
        for number in range(job.search.trials):
            trial = study.ask()
            params = space.ask(trial, job)
            net = law(params, job.train.steps)
            row = trial_row(number, run_result(predicted=150, net=net), job, preset=trial.user_attrs.get("preset"))
            row = {name: value for name, value in row.items() if not name.startswith("params_")}
            store.add_trial(row | {f"params_{name}": value for name, value in params.items()} | {"objective": net})
            study.tell(trial, net)
        store.event("finished", note=None)
        store.close()
        return Outcome(status="finished", text="", directory=directory)


def law(params: dict[str, Any], steps: int) -> float:
    """Net speedup that depends on the horizon's share of the run alone, best at 2 %."""
    return 0.95 - 0.05 * abs(math.log(params["prediction_horizon"] / (0.02 * steps)))


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedStudies]:
    made = SimulatedStudies()
    _simulate(monkeypatch, made)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield made
    optuna.logging.set_verbosity(verbosity)


def _simulate(monkeypatch: pytest.MonkeyPatch, studies: SimulatedStudies) -> None:
    monkeypatch.setattr(climbing, "run_study", studies.run)
    monkeypatch.setattr(climbing, "resume_study", studies.resume)
    monkeypatch.setattr(climbing, "ray_session", lambda job: contextlib.nullcontext())


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the plots takes most of the time of a simulated ladder."""
    monkeypatch.setattr(climbing, "write_ladder", lambda directory: "")


def silent(text: str) -> None:
    """Print nothing."""


def test_every_rung_starts_from_the_best_of_the_one_below_and_the_report_says_how_far_that_carries(
    job: JobConfig, studies: SimulatedStudies, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = climb(replace(job, ladder=replace(job.ladder, from_nothing=("large",))), say=silent)
    assert studies.begun == ["small", "medium", "large", "large-from-nothing"]
    assert outcome.status == "finished"
    ladder = load_ladder(outcome.directory)
    assert [rung.trials for rung in ladder.rungs] == [12, 8, 6]
    assert [rung.parameters for rung in ladder.rungs] == sorted(rung.parameters for rung in ladder.rungs)
    best, carried = ladder.rungs[0].study.best, ladder.rungs[1].study.trials.iloc[0]
    assert best is not None
    assert carried["preset"] == f"small trial {best['number']:.0f}"
    assert carried["params_prediction_horizon"] == round(1.5 * best["params_prediction_horizon"])
    assert load_study(outcome.directory / "medium").job.search.ranges  # an ordinary study, which opens alone
    pair = ladder.pairs[0]
    assert 4 <= pair.correlation.n == len(ladder.rungs[1].origins)
    assert pair.correlation.rho is not None
    assert pair.correlation.rho > 0.7  # the law is the same but for whole steps
    assert [(one.below, one.above) for one in ladder.pairs[:2]] == [("small", "medium"), ("medium", "large")]
    each = ladder.rungs[2].trial_seconds
    assert each is not None
    assert ladder.saved(ladder.rungs[2]) == pytest.approx(6 * each)
    assert ladder.next_rung is not None
    assert ladder.next_rung.parameters == pytest.approx(ladder.rungs[2].parameters ** 2 / ladder.rungs[1].parameters)
    for name in ("report.html", "report.md"):
        page = (outcome.directory / name).read_text()
        assert "Measured against a search from nothing" in page
        assert "net speedup" in page
    assert main(["report", str(outcome.directory)]) == 0
    assert "best net speedup per rung is" in capsys.readouterr().out


@pytest.mark.parametrize("nets", [(0.93, 0.97), (1.08, 1.2)])
def test_a_confirmed_value_is_that_of_the_best_trial_unless_another_is_named_as_a_gain(
    tmp_path: Path, nets: tuple[float, float]
) -> None:
    study = load_study(build_study(tmp_path / "small", confirm=False))
    best, other = (int(number) for number in study.ranked["number"][:2])
    first, second = confirmed(best, net=nets[0]), confirmed(other, net=nets[1])
    assert (second["verdict"] == "real gain") == (nets[1] > 1)
    rung = Rung(
        name="small", study=replace(study, statistics={"candidates": [first, second]}),
        transfer={"parameters": 10_000}, from_nothing=None, tuning_seconds=(),
    )  # fmt: skip
    table = results(Ladder(directory=tmp_path, job=study.job, rungs=(rung,)))
    said = table.rows[0][table.columns.index("confirmed")]
    assert said.startswith(f"{(second if nets[1] > 1 else first)['net_speedup']['mean']:.2f} (")
    assert said.endswith(f", trial {other}" if nets[1] > 1 else ")")


@pytest.mark.usefixtures("no_report")
def test_a_killed_ladder_goes_on_and_carries_the_same(job: JobConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = SimulatedStudies(killed_after=["medium"])
    _simulate(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        climb(job, say=silent)
    directory = Path(job.studies_dir) / job.name
    before = load_ladder(directory).rungs[1].transfer
    (directory / "large").mkdir()  # of a driver that was killed between mkdir and its first file
    assert climb(job, say=silent).status == "finished"
    assert killed.begun == ["small", "medium", "large"]
    ladder = load_ladder(directory)
    assert ladder.finished
    assert ladder.rungs[1].transfer == before
    assert main(["resume", str(directory)]) == 0
    assert killed.begun == ["small", "medium", "large"]


@pytest.mark.usefixtures("no_report")
def test_a_ray_that_does_not_start_in_the_middle_says_how_to_go_on(
    job: JobConfig, studies: SimulatedStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ray_session(rung: JobConfig) -> contextlib.AbstractContextManager[None]:
        if rung.name == "medium":
            raise HybridRayError("Ray does not start on this machine")
        return contextlib.nullcontext()

    with monkeypatch.context() as patch:
        patch.setattr(climbing, "ray_session", ray_session)
        with pytest.raises(HybridRayError, match=f"hybrid-ray resume {Path(job.studies_dir) / job.name}"):
            climb(job, say=silent)
    assert climb(job, say=silent).status == "finished"
    assert studies.begun == ["small", "medium", "large"]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("command", ["run", "ladder"])
def test_a_job_with_rungs_is_climbed_by_both_commands(
    command: str, job: JobConfig, studies: SimulatedStudies, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(dump_job(job))
    assert main([command, str(tmp_path / "job.yaml")]) == 0
    assert studies.begun == ["small", "medium", "large"]


@pytest.mark.usefixtures("no_report")
def test_a_ladder_is_extended_by_rungs_above_and_by_nothing_else(job: JobConfig, studies: SimulatedStudies) -> None:
    two = {name: RUNGS[name] for name in ("small", "medium")}
    climb(replace(job, ladder=replace(job.ladder, rungs=two)), say=silent)
    climb(job, say=silent)
    assert studies.begun == ["small", "medium", "large"]
    with pytest.raises(ConfigError, match=r"(?s)ladder with other settings.*train.steps: 600 -> 700"):
        climb(replace(job, train=replace(job.train, steps=700)), say=silent)
    with pytest.raises(ConfigError, match="rungs can only be added"):
        climb(replace(job, ladder=replace(job.ladder, rungs={**two, "other": {}})), say=silent)
    assert studies.begun == ["small", "medium", "large"]


def test_a_study_is_not_taken_for_a_ladder(job: JobConfig, studies: SimulatedStudies) -> None:
    (Path(job.studies_dir) / job.name).mkdir()
    (Path(job.studies_dir) / job.name / "job.yaml").write_text("{}")
    with pytest.raises(ConfigError, match="exists and is not a ladder"):
        climb(job, say=silent)
    with pytest.raises(ConfigError, match=r"ladder.rungs is empty"):
        climb(replace(job, ladder=LadderConfig()), say=silent)
    with pytest.raises(ConfigError, match="use hybrid-ray ladder"):
        run_study(job)
    assert not studies.begun


def test_the_plan_counts_every_rung_and_lists_the_problems_of_all(job: JobConfig) -> None:
    tuned = replace(job, ladder=replace(job.ladder, learning_rate="retune", from_nothing=("medium",)))
    found = plan_ladder(tuned)
    assert [[stage.runs for stage in rung.stages] for rung in found.rungs.values()] == [
        [3, 6, 12, 21, 0],
        [3, 6, 8, 21, 12],
        [3, 6, 6, 21, 0],
    ]
    assert "every rung fits" in found.text
    crowded = {name: {**RUNGS[name], "resources.cpus_per_worker": 999} for name in ("medium", "large")}
    with pytest.raises(ConfigError) as caught:
        plan_ladder(replace(job, ladder=replace(job.ladder, rungs={"small": {}, **crowded})))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["rung medium", "rung large"]
