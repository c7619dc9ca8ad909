"""Score the trials of a finished study by another objective, from its stored results. Nothing is trained.

The code is that of the search (`TrialScorer`), so the same objective gives the same numbers. The search itself used the
old objective; the report says what that means for the results (`Rescoring.notes`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hybrid_ray.config import ObjectiveConfig
from hybrid_ray.config.jobfile import dump_job, read_job
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.evaluation.scoring import TrialScorer
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.report.rescoring import RESCORED, Rescoring
from hybrid_ray.report.study_page import write_report
from hybrid_ray.run_result import MEASURES, Evaluation, RunResult, TrialEnd, was_trained
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.lock import lock_directory
from hybrid_ray.storage.study_store import write_trials

__all__ = ["Rescored", "rescore", "rescored_trials"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """Rows as in ``trials.jsonl`` with new scores, and the trials whose end changes with the new limit."""

    rows: tuple[Mapping[str, Any], ...]
    diverged_now: tuple[int, ...]
    stopped_now: tuple[int, ...]


def rescore(directory: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Score a study's trials again and write trials and report to its ``rescored`` folder. Returns the new folder.

    Args:
        directory: the study. Only that folder is changed.
        overrides: ``objective.<setting>=<value>``, changes to the study's objective.

    Raises:
        ConfigError: an override is not a setting of the objective or has a wrong value; or the study is a rescored one.
        StoreError: there is no such study, or its baseline or frontier is missing.
        StudyLocked: another process writes to that folder.
    """
    study = load_study(directory)
    if study.rescoring:
        raise ConfigError(f"{directory} is a rescored copy of {study.runs.name}: give the study itself, {study.runs}")
    job = replace(study.job, objective=_objective(study, overrides))
    found = rescored_trials(study, job.objective)
    place = study.directory / "rescored" / _label(study.job.objective, job.objective)
    note = Rescoring(
        study=study.directory,
        searched=study.job.objective,
        diverged_now=found.diverged_now,
        stopped_now=found.stopped_now,
        trials=len(found.rows),
    )
    with lock_directory(place):
        write_json_atomic(place / RESCORED, note.as_dict(place))
        write_trials(place, found.rows)
        write_atomic(place / "job.yaml", dump_job(job).encode())  # last: it makes the folder a study
        write_report(place)
    return place


def rescored_trials(study: Study, objective: ObjectiveConfig) -> Rescored:
    """A study's trials scored by another objective; writes nothing.

    Raises:
        StoreError: the baseline or frontier is missing or not comparable with a trial, or the result of a finished
            trial is missing.
    """
    runs = [result for place in study.frontier["run"] if (result := study.result(str(place))) is not None]
    rows = read_jsonl(study.directory / "trials.jsonl")
    try:
        old, new = (TrialScorer.from_results(runs, settings) for settings in (study.job.objective, objective))
        found = [
            _measured(row, study.result(int(row["number"] if was_trained(row) else row["equal_to"])), old, new)
            for row in rows
        ]
    except ValueError as error:
        raise StoreError(f"{study.directory} can't be rescored: {error}") from error
    changed = [(row["number"], row["diverged"]) for row, was in zip(found, rows, strict=True) if _ended_anew(row, was)]
    return Rescored(
        rows=tuple(found),
        diverged_now=tuple(number for number, diverged in changed if diverged),
        stopped_now=tuple(number for number, diverged in changed if not diverged),
    )


def _measured(row: Mapping[str, Any], result: RunResult | None, old: TrialScorer, new: TrialScorer) -> dict[str, Any]:
    """A trial's row with its new measures. A failed trial is unchanged.

    Raises ValueError for a finished trial without a result, because a row does not hold the final held-out loss.
    """
    if row["state"] == "FAIL":
        return dict(row)
    stopped_early = row["state"] == "PRUNED" and not row["diverged"]
    if stopped_early:
        measures = new.at(_last_report(row), row["step_seconds"])  # a stopped trial has only its row
    elif result is None:
        raise ValueError(f"trial {row['number']} has ended but its result.json is missing: restore the file")
    else:
        measures = _of_a_whole_run(result, old, new)
    kept = {name: measures[name] for name in MEASURES}
    end = TrialEnd.of(measures)
    return {**row, **kept, "state": end.state, "end": end, "error": row["error"]}


def _of_a_whole_run(result: RunResult, old: TrialScorer, new: TrialScorer) -> dict[str, Any]:
    """Measures of a run that finished or diverged. With another limit on degradation, the other may be true."""
    given_up = new.diverged_at(result.curve)
    if given_up and (result.status == "finished" or given_up != result.curve[-1]):
        return new.at(given_up, given_up.train_seconds / given_up.time, status="diverged")
    if result.status == "diverged" and not given_up and old.diverged_at(result.curve):
        return new.at(result.curve[-1], result.step_seconds)
    return new.final(result)


def _last_report(row: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        step=int(row["steps"]),
        loss=row["loss"],
        real_steps=int(row["real_steps"]),
        train_seconds=row["train_seconds"],
        time=row["time"],
    )


def _ended_anew(row: Mapping[str, Any], was: Mapping[str, Any]) -> bool:
    """Whether the trial's end differs under the new limit."""
    return bool(row["state"] != "FAIL" and row["diverged"] != was["diverged"])


def _objective(study: Study, overrides: Sequence[str]) -> ObjectiveConfig:
    """The study's objective with the overrides applied and checked. Raises one `ConfigError` with every problem."""
    known = [f"objective.{field.name}" for field in fields(ObjectiveConfig)]
    others = [text for text in overrides if not text.strip().startswith("objective.")]
    problems = [
        f"--set {text!r} is not a setting of the objective, and rescoring trains nothing: give {', '.join(known)}"
        for text in others
    ]
    try:
        job = read_job(study.directory / "job.yaml", [text for text in overrides if text not in others])
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return job.objective


def _label(old: ObjectiveConfig, new: ObjectiveConfig) -> str:
    """The folder's name: the mode, then each number that changed (``score-penalty_weight-5``)."""
    changed = [
        f"{field.name}-{getattr(new, field.name):g}"
        for field in fields(ObjectiveConfig)
        if field.name != "mode" and getattr(new, field.name) != getattr(old, field.name)
    ]
    return "-".join([new.mode, *changed])
