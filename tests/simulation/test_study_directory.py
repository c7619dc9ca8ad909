"""The study directory and its Optuna journal: names, locks, repairs, and recovery from a killed driver."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from micro_jobs import micro_job
from optuna.trial import TrialState

from hybrid_ray.config import JobConfig, ResourcesConfig, SearchConfig, TrainConfig
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.errors import ConfigError, StudyLocked
from hybrid_ray.ray_tune.optuna_storage import counted_trials, open_study, queue_settings, reconcile
from hybrid_ray.ray_tune.searcher import tell
from hybrid_ray.ray_tune.space import load_space
from hybrid_ray.report.load import load_study
from hybrid_ray.run_result import TrialEnd
from hybrid_ray.storage.json_files import differences, read_json, write_json_atomic
from hybrid_ray.storage.results_version import RESULTS_VERSION
from hybrid_ray.storage.study_store import StudyStore
from hybrid_ray.study.directory import StudyDirectory, identity
from hybrid_ray.study.pipeline import extend_study, resume_study
from hybrid_ray.study.plan import resolve_auto

PREDICTS = {"predicted_share": 0.3}


def create(job: JobConfig) -> StudyDirectory:
    return StudyDirectory.create(job, space=load_space(job))


def test_a_name_in_use_becomes_the_next_free_one_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = micro_job(tmp_path)
    with create(job) as first, create(job) as second, create(job) as third:
        assert [study.path.name for study in (first, second, third)] == ["micro", "micro-2", "micro-3"]
    assert len(caplog.messages) == 2
    assert f"this is a new study, micro-3; hybrid-ray resume {first.path} goes on with the old one" in caplog.text


def test_a_study_holds_the_job_as_run_and_what_it_ran_in(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    with create(job) as study:
        pass
    assert read_job(study.path / "job.yaml") == job
    environment = load_study(study.path).environment
    assert environment["packages"]["torch"]
    assert environment["cpus"] >= 1
    assert "git" in environment


def test_a_second_driver_is_refused_and_a_lock_that_nobody_holds_does_not_count(tmp_path: Path) -> None:
    study = create(micro_job(tmp_path))
    with pytest.raises(StudyLocked, match="is in use by process"):
        StudyDirectory.open(study.path)
    study.close()
    assert (study.path / "lock").exists()  # the file stays, the lock does not
    StudyDirectory.open(study.path).close()


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a study directory"):
        StudyDirectory.open(tmp_path)


def test_a_changed_job_is_refused_with_what_changed(tmp_path: Path) -> None:
    job = micro_job(tmp_path)  # device auto: the value that the machine gives it is no change
    with create(resolve_auto(job)) as study:
        study.set_job(replace(job, train=replace(job.train, learning_rate=0.5), seed=7))
    with pytest.raises(ConfigError) as caught:
        resume_study(study.path)
    assert caught.value.problems[1:3] == ("seed: 0 -> 7", "train.learning_rate: 0.01 -> 0.5")
    assert "--fork" in caught.value.problems[-1]


def test_another_text_of_the_task_is_a_warning_on_going_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = Path(__file__).parents[2] / "examples"
    for name in ("own_model.py", "own_model.yaml"):
        (tmp_path / name).write_text((examples / name).read_text())
    with create(read_job(tmp_path / "own_model.yaml", [f"studies_dir={tmp_path}/studies"])) as study:
        now = study.stored_identity
        study.check_identity(now)
        assert not caplog.records
        with (tmp_path / "own_model.py").open("a") as file:
            file.write("# another line\n")
        study.check_identity(now)
    (record,) = caplog.records
    assert f"{tmp_path / 'own_model.py'} has changed since {study.path} began" in record.getMessage()


def test_only_what_scores_depend_on_is_compared(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    space = load_space(job)
    more = replace(job, search=replace(job.search, trials=99), name="other", studies_dir="elsewhere")
    assert differences(identity(job, space), identity(more, space)) == []
    longer = replace(job, train=TrainConfig(steps=1000))
    changed = differences(identity(job, space), identity(longer, load_space(longer)))
    assert any(line.startswith("search.ranges.prediction_horizon.high") for line in changed)


def made_elsewhere(job: JobConfig, **parts: Any) -> Path:
    """A study whose stored identity has these parts, as if made with other code or on another machine."""
    with create(resolve_auto(job)) as study:
        environment = read_json(study.path / "environment.json")
        environment["identity"] |= parts
        study.store.write_json("environment.json", environment)
    return study.path


def test_a_study_of_another_results_version_is_refused_and_told_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resume_study(made_elsewhere(micro_job(tmp_path), results_version=RESULTS_VERSION + 1))
    _, changed, mend = caught.value.problems
    assert changed == f"results_version: {RESULTS_VERSION + 1} -> {RESULTS_VERSION}"
    assert "resume --fork" in mend


@pytest.mark.parametrize("version", [None, 2])  # none was recorded; other names of columns
def test_a_study_whose_columns_had_other_names_is_refused_in_one_line(tmp_path: Path, version: int | None) -> None:
    path = made_elsewhere(micro_job(tmp_path))
    environment = read_json(path / "environment.json")
    del environment["identity"]["results_version"]
    environment["identity"] |= {} if version is None else {"results_version": version}
    write_json_atomic(path / "environment.json", {**environment, "git": {"commit": "0123456789abcdef"}})
    for read in (resume_study, load_study):
        with pytest.raises(ConfigError, match=r"older hybrid_ray.*commit 012345678") as caught:
            read(path)
        assert len(caught.value.problems) == 1


def test_another_commit_is_said_and_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = resolve_auto(micro_job(tmp_path))
    with create(job) as study:
        path = study.path
    monkeypatch.setattr("hybrid_ray.storage.results_version.git_state", lambda: {"commit": "another", "changed": False})
    with StudyDirectory.open(path) as study:
        study.check_identity(identity(job, load_space(job)))
    assert "this is commit another" in caplog.text


def test_a_study_of_another_machine_is_refused(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    there = identity(resolve_auto(job), load_space(job))["machine"]
    with pytest.raises(ConfigError, match=r"machine\.device: 'H200' -> "):
        resume_study(made_elsewhere(job, machine={**there, "device": "H200"}))


def test_a_study_of_another_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for file in range(20):
        lines = (f"Line {line} of text {file}, which nobody reads.\n" for line in range(500))
        (tmp_path / "texts" / f"{file}.txt").write_text("".join(lines))
    job = resolve_auto(micro_job(tmp_path))
    with create(replace(job, data=replace(job.data, corpus=str(tmp_path / "texts"), heldout_tokens=1024))) as study:
        pass
    (tmp_path / "texts" / "7.txt").write_text("Somebody has written this one anew.\n" * 500)
    with pytest.raises(ConfigError) as caught:
        resume_study(study.path)
    assert [line.split(":")[0] for line in caught.value.problems[1:-1]] == ["corpus"]


def test_what_a_cluster_trains_on_is_written_down_once_and_then_compared(tmp_path: Path) -> None:
    with create(micro_job(tmp_path, resources=ResourcesConfig(address="auto"))) as study:
        assert "device" not in study.stored_identity["machine"]
        study.machine.check({"hardware": {"device": "H200"}})
        study.machine.check({"hardware": {"device": "H200"}})
        with pytest.raises(ConfigError, match=r"machine\.hardware\.device: 'H200' -> 'A100'"):
            study.machine.check({"hardware": {"device": "A100"}})


def test_a_refused_extension_leaves_the_study_as_it_was(tmp_path: Path) -> None:
    job = resolve_auto(micro_job(tmp_path))
    study = made_elsewhere(job, seed=7)
    with pytest.raises(ConfigError, match="seed: 7 -> 0"):
        extend_study(study, trials=9)
    with pytest.raises(ConfigError, match="already has 4 trials"):
        extend_study(study, trials=4)
    assert read_job(study / "job.yaml") == job


def half_done(tmp_path: Path) -> tuple[JobConfig, StudyStore]:
    """A study after SIGKILL: trial 0 known to Optuna, 1 stored but unknown to it, 2 running, all presets queued."""
    job = micro_job(tmp_path, search=SearchConfig(trials=6))
    study, space, store = open_study(tmp_path, job), load_space(job), StudyStore(tmp_path)
    queue_settings(study, space.presets)
    for number in range(3):
        trial = study.ask()
        space.ask(trial, job)
        row = {
            "number": number,
            "state": "COMPLETE",
            "objective": 1.5,
            "diverged": 0,
            "status": "finished",
            "error": None,
            **PREDICTS,
        }
        if number < 2:
            store.add_trial(row)
        if number < 1:
            study.tell(trial, 1.5)
    return job, store


def test_after_a_kill_nothing_finished_is_lost_and_nothing_runs_for_ever(tmp_path: Path) -> None:
    job, store = half_done(tmp_path)
    study = open_study(tmp_path, job)
    assert reconcile(study, store, job) == 1
    states = [trial.state for trial in study.trials]
    assert states[:4] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert TrialState.RUNNING not in states
    assert study.trials[1].value == 1.5
    assert counted_trials(store.trials()) == 2

    again = study.trials[-1]
    assert again.state is TrialState.WAITING
    assert again.system_attrs["fixed_params"] == study.trials[2].params
    assert again.user_attrs["preset"] == study.trials[2].user_attrs["preset"]
    row = store.trials()[-1]
    assert (row["number"], row["state"]) == (2, "FAIL")
    assert row["end"] == TrialEnd.INTERRUPTED


def test_a_preset_asked_for_just_before_the_kill_is_queued_again(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    study, store, presets = open_study(tmp_path, job), StudyStore(tmp_path), load_space(job).presets
    queue_settings(study, presets)
    study.ask()  # killed before its first knob was suggested
    assert study.trials[0].params == {}
    assert reconcile(study, store, job) == 1
    name, values = next(iter(presets.items()))
    again = study.trials[-1]
    assert again.system_attrs["fixed_params"] == dict(values)
    assert again.user_attrs["preset"] == name


def test_what_failed_until_the_search_gave_up_is_tried_again_on_resume_and_once(tmp_path: Path) -> None:
    job = micro_job(tmp_path)
    study, store, space = open_study(tmp_path, job), StudyStore(tmp_path), load_space(job)
    queue_settings(study, space.presets)
    for number, state in enumerate(("COMPLETE", "FAIL", "FAIL")):
        trial = study.ask()
        space.ask(trial, job)
        row = {"number": number, "state": state, "objective": 1.5, "diverged": 0, "error": None, **PREDICTS}
        row["status"] = "failed" if state == "FAIL" else "finished"
        store.add_trial(row | ({"error": "no disk"} if state == "FAIL" else {}))
        tell(study, trial, row, "score")
    assert reconcile(study, store, job) == 0  # two failures among other trials are no failure of the study
    assert counted_trials(store.trials()) == 3
    store.event("gave_up", trials=[1, 2])
    assert reconcile(study, store, job) == 2
    assert counted_trials(store.trials()) == 1
    assert store.trials()[1]["end"] == TrialEnd.INTERRUPTED
    assert "the search gave up after it (no disk)" in store.trials()[1]["error"]
    queued = [trial.system_attrs["fixed_params"] for trial in study.trials[-2:]]
    assert queued == [trial.params for trial in study.trials[1:3]]
    assert reconcile(open_study(tmp_path, job), store, job) == 0
    assert len(study.trials) == len(space.presets) + 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_search_does_not_draw_the_same_again(tmp_path: Path, sampler: Literal["tpe", "random"]) -> None:
    job = micro_job(tmp_path, search=SearchConfig(sampler=sampler))
    space, drawn = load_space(job), []
    for _ in range(2):
        study = open_study(tmp_path, job)
        trials = [study.ask() for _ in range(3)]
        drawn.append([space.ask(trial, job) for trial in trials])
        for trial in trials:
            study.tell(trial, 1.0)
    assert all(settings not in drawn[0] for settings in drawn[1])


def test_putting_right_twice_changes_nothing(tmp_path: Path) -> None:
    job, store = half_done(tmp_path)
    reconcile(open_study(tmp_path, job), store, job)
    study = open_study(tmp_path, job)
    queue_settings(study, load_space(job).presets)
    before = [(trial.number, trial.state) for trial in study.trials]
    assert reconcile(study, store, job) == 0
    assert [(trial.number, trial.state) for trial in study.trials] == before


def test_a_torn_last_line_of_the_journal_is_trimmed_with_a_warning(tmp_path: Path) -> None:
    job, store = half_done(tmp_path)
    journal = tmp_path / "optuna.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "x", "tri')
    (tmp_path / "optuna.journal.lock").write_text("left by a kill")
    with pytest.warns(UserWarning, match="incomplete line"):
        study = open_study(tmp_path, job)
    reconcile(study, store, job)
    study.tell(study.ask(), 1.0)  # an append after the repair
    assert len(open_study(tmp_path, job).get_trials(states=(TrialState.COMPLETE,))) == 3
