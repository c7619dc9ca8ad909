"""A finished study measured by another objective, from the raw parts that it kept. Nothing is trained.

The same code measures that measured first (`TrialScorer`), so that the same settings give the same numbers. What a
search did under its own objective can't be undone: what that means for a result is told by its report
(`Rescoring.notes`).
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
from hybrid_ray.run_result import MEASURES, Evaluation, RunResult, TrialEnd
from hybrid_ray.storage.atomic import write_atomic
from hybrid_ray.storage.json_files import write_json_atomic
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.study_store import write_trials

__all__ = ["Rescored", "rescore", "rescored_trials"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescored:
    """Rows as in ``trials.jsonl``, measured anew, and the trials of which another limit says how they ended."""

    rows: tuple[Mapping[str, Any], ...]
    diverged_now: tuple[int, ...]
    stopped_now: tuple[int, ...]


def rescore(directory: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Score a study's trials anew and write trials and report under its ``rescored`` folder. Returns where.

    Args:
        directory: the study. Nothing in it is changed but that folder.
        overrides: ``objective.<setting>=<value>``, over what the study was searched with.

    Raises:
        ConfigError: an override is none of the objective, or impossible; or the study is itself one scored anew.
        StoreError: there is no such study, or it has no baseline and frontier to measure by.
    """
    study = load_study(directory)
    if study.rescoring:
        raise ConfigError(f"{directory} is {study.runs.name} scored anew: give that study itself, {study.runs}")
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
    write_json_atomic(place / RESCORED, note.as_dict(place))
    write_trials(place, found.rows)
    write_atomic(place / "job.yaml", dump_job(job).encode())  # last: from here on it is a study
    write_report(place)
    return place


def rescored_trials(study: Study, objective: ObjectiveConfig) -> Rescored:
    """A study's trials measured by another objective; writes nothing.

    Raises:
        StoreError: baseline or frontier are missing, or not comparable with a trial; or the result of a trial that
            came to its end is gone.
    """
    runs = [result for place in study.frontier["run"] if (result := study.result(str(place))) is not None]
    rows = read_jsonl(study.directory / "trials.jsonl")
    try:
        old, new = (TrialScorer.from_results(runs, settings) for settings in (study.job.objective, objective))
        found = [_measured(row, study.result(int(row["number"])), old, new) for row in rows]
    except ValueError as error:
        raise StoreError(f"{study.directory} can't be scored anew: {error}") from error
    changed = [(row["number"], row["diverged"]) for row, was in zip(found, rows, strict=True) if _ended_anew(row, was)]
    return Rescored(
        rows=tuple(found),
        diverged_now=tuple(number for number, diverged in changed if diverged),
        stopped_now=tuple(number for number, diverged in changed if not diverged),
    )


def _measured(row: Mapping[str, Any], result: RunResult | None, old: TrialScorer, new: TrialScorer) -> dict[str, Any]:
    """A trial's row with its measures made anew. One that failed has none.

    Raises ValueError for a trial that came to its end and left no result: a row alone has no held-out loss of an end.
    """
    if row["state"] == "FAIL":
        return dict(row)
    stopped_early = row["state"] == "PRUNED" and not row["diverged"]
    if stopped_early:
        measures = new.at(_last_report(row), row["calibration"])  # of a stopped trial its row is all there is
    elif result is None:
        raise ValueError(f"trial {row['number']} came to its end but its result.json is gone: put it back")
    else:
        measures = _of_a_whole_run(result, old, new)
    kept = {name: measures[name] for name in MEASURES}
    end = TrialEnd.of(measures)
    return {**row, **kept, "state": end.state, "end": end, "error": row["error"]}


def _of_a_whole_run(result: RunResult, old: TrialScorer, new: TrialScorer) -> dict[str, Any]:
    """Of a run that came to an end of its own, which another limit on degradation may see otherwise."""
    given_up = new.diverged_at(result.curve)
    if given_up and (result.status == "finished" or given_up != result.curve[-1]):
        return new.at(given_up, given_up.train_seconds / given_up.time, status="diverged")
    if result.status == "diverged" and not given_up and old.diverged_at(result.curve):
        return new.at(result.curve[-1], result.calibration)
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
    """Whether the new limit says another end than the old one did."""
    return bool(row["state"] != "FAIL" and row["diverged"] != was["diverged"])


def _objective(study: Study, overrides: Sequence[str]) -> ObjectiveConfig:
    """The study's objective with the overrides put over it, checked as a job is; every problem at once."""
    known = [f"objective.{field.name}" for field in fields(ObjectiveConfig)]
    others = [text for text in overrides if not text.strip().startswith("objective.")]
    problems = [
        f"--set {text!r} is none of the objective's, and scoring anew trains nothing: give {', '.join(known)}"
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
    """Names the folder: the mode, then each number that changed (``score-penalty_weight-5``)."""
    changed = [
        f"{field.name}-{getattr(new, field.name):g}"
        for field in fields(ObjectiveConfig)
        if field.name != "mode" and getattr(new, field.name) != getattr(old, field.name)
    ]
    return "-".join([new.mode, *changed])
