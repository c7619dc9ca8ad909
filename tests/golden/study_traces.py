"""Traces of a micro study and a comparison, made by the commands that run, extend, resume, report and rescore them.

Times differ between runs, and so do scores and the texts about them. So every trial is confirmed, so that the set of
runs does not depend on scores, and only the names of values that depend on time are recorded.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from commands import micro_job, run_command, run_commands, workplace, write_job
from run_traces import exact, files_of, result_of, steps_of

from hybrid_ray import load_study

__all__ = ["study_traces"]

STUDY = "studies/micro"
_SHORT = {"steps": 40, "evaluations": 2, "sample_tokens": 0}
_STEPS = ("steps", "real_steps", "predicted_steps")
_TRIAL = ("number", "state", "preset", "loss", "baseline_loss", "inert", "status", *_STEPS)
_RUN = ("run", "arm", "seed", "status", "loss", "test_loss", *_STEPS)


def study_traces() -> dict[str, Any]:
    with workplace() as folder:
        write_job(folder / "job.yaml", micro_job(train=_SHORT, frontier={"lengths": [0.4, 0.55, 0.7, 0.85, 1.0]}))
        traces = {"run": _begin(run_command(folder, "run", "job.yaml"))}
        traces |= {f"study of two, {name}": trace for name, trace in _study(folder / STUDY).items()}
        traces["extend"] = _begin(run_command(folder, "extend", STUDY, "--trials", "3"))
        traces |= {f"study of three, {name}": trace for name, trace in _study(folder / STUDY).items()}
        asked = {
            "report": ("report", STUDY),
            "report by name": ("report", "micro"),
            "rescore": ("rescore", STUDY, "--set", "objective.mode=net"),
            "rescore by another setting": ("rescore", STUDY, "--set", "train.steps=9"),
            "extend to fewer": ("extend", STUDY, "--trials", "2"),
        }
        traces |= {name: _begin(said) for name, said in run_commands(folder, asked).items()}
        traces["resume what is finished"] = _begin(run_command(folder, "resume", STUDY))
        traces["rescored"] = _tables(next(iter(sorted((folder / STUDY / "rescored").iterdir()))))
        write_job(folder / "compared.yaml", micro_job(train=_SHORT))
        compared = run_command(folder, "compare", "compared.yaml", "--out", "compared")
        traces["compare"] = _begin(compared)
        traces["comparison"] = _comparison(folder / "compared")
    return traces


def _begin(said: Mapping[str, Any]) -> dict[str, Any]:
    """Exit code and the printed lines that do not depend on time; the headline depends on scores."""
    return {
        "exit code": said["exit code"],
        "output": [line for line in said["output"] if line.startswith(("Report:", "Note:", "Go on", "FOLDER"))],
        "errors": sorted(line.partition(", score")[0] for line in said["errors"]),  # the order in which runs end varies
    }


def _study(directory: Path) -> dict[str, Any]:
    study = load_study(directory)
    runs = [path.parent.relative_to(directory).as_posix() for path in sorted(directory.rglob("result.json"))]
    return {
        "tables": _tables(directory),
        "files": [name for name in files_of(directory) if not name.endswith(".png")],
        "results": {run: result_of(directory / run) for run in runs},
        "steps": {run: steps_of(study.steps(run)) for run in ("baseline", "frontier/0.40", 0, 1)},
        "confirmation": _statistics(study.statistics),
        "events": study.events["event"].tolist(),
        "finished": study.finished,
    }


def _tables(directory: Path) -> dict[str, Any]:
    """Columns and rows without times."""
    study = load_study(directory)
    params = [name for name in study.trials.columns if name.startswith("params_")]
    tables = {"trials": study.trials, "frontier": study.frontier, "confirmation": study.confirmation}
    return {
        "columns": {name: sorted(table.columns) for name, table in tables.items()},
        "trials": _rows(study.trials, [*_TRIAL, *params], by="number"),
        "frontier": _rows(study.frontier, ["length", *_RUN], by="length"),
        "baseline": _rows(study.baseline, _RUN, by="run"),
        "confirmation": _rows(study.confirmation, ["candidate", *_RUN], by="run"),
    }


def _rows(table: pd.DataFrame, columns: Sequence[str], *, by: str) -> list[dict[str, Any]]:
    rows = table.sort_values(by)[list(columns)].to_dict("records")
    return [exact({name: None if value != value else value for name, value in row.items()}) for row in rows]


def _statistics(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The names and the losses in ``confirmation.json``."""
    assert found is not None
    candidates = sorted(found["candidates"], key=lambda one: one["trial"])
    return {
        "names": sorted(set(_places(found))),
        "seeds": found["seeds"],
        "split": found["split"],
        "trials": [one["trial"] for one in candidates],
        "params": [exact(one["params"]) for one in candidates],
        "verdicts are text": all(isinstance(one["verdict"], str) for one in candidates),
        "losses": [
            {arm: [exact(row["loss"]) for row in rows] for arm, rows in one["runs"].items()} for one in candidates
        ],
    }


def _comparison(directory: Path) -> dict[str, Any]:
    written = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    runs = [path.parent.relative_to(directory).as_posix() for path in sorted(directory.rglob("result.json"))]
    return {
        "files": [name for name in files_of(directory) if not name.endswith(".png")],
        "names": sorted(set(_places(written))),
        "results": {run: result_of(directory / run) for run in runs},
    }


def _places(data: Any, place: str = "") -> Iterator[str]:
    """The names in nested data, joined by dots."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield f"{place}.{name}".lstrip(".")
            yield from _places(value, f"{place}.{name}")
    elif isinstance(data, list):
        for value in data:
            yield from _places(value, f"{place}[]")
