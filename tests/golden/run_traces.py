"""Traces of whole runs of the command ``train``: every step, the files of the run, and the printed text."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from commands import micro_job, run_command, run_commands, workplace, write_job

from hybrid_ray.storage.json_files import read_json

__all__ = ["files_of", "result_of", "run_traces", "steps_of"]

# By name: the arm and the changes to the job.
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "baseline": ("baseline", {}),
    "hybrid": ("hybrid", {}),
    "two workers": ("hybrid", {"resources": {"workers": 2}}),
    "spam, accumulated": ("hybrid", {"train": {"optimizer": "adamwspam", "micro_batch_size": 2}}),
    "pruned, bf16 weights": ("hybrid", {"train": {"optimizer": "adamwprune", "precision": "bf16", "weights": "bf16"}}),
    "cnn": (
        "hybrid",
        {"model": {"preset": "cnn"}, "data": {"corpus": "digits"}, "hybrid": {"predictor": "momentum"}},
    ),
}
_EXACT = ("loss", "confidence", "learning_rate", "grad_norm")


def run_traces() -> dict[str, Any]:
    with workplace() as folder:
        for name, (_, changes) in RUNS.items():
            write_job(folder / f"{_short(name)}.yaml", micro_job(**changes))
        asked = {name: _command(name) for name in RUNS}
        several = asked.pop("two workers")
        said = {
            **run_commands(folder, asked | {"a folder in use": asked["baseline"]}),
            "two workers": run_command(folder, *several),
        }
        return {name: text | _left(folder / "out" / _short(name)) for name, text in said.items()}


def _command(name: str) -> tuple[str, ...]:
    return "train", f"{_short(name)}.yaml", "--arm", RUNS[name][0], "--out", f"out/{_short(name)}"


def _short(name: str) -> str:
    return name.partition(",")[0].replace(" ", "_")


def _left(directory: Path) -> dict[str, Any]:
    """The files of a run, if there are any."""
    if not (directory / "result.json").exists():
        return {}
    steps = pd.read_parquet(directory / "steps.parquet")
    return {"files": files_of(directory), "result": result_of(directory), "steps": steps_of(steps)}


def files_of(directory: Path) -> list[str]:
    """Paths in a folder, without temporary files of Ray."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and ".ray" not in path.parts
    )


def result_of(directory: Path) -> dict[str, Any]:
    """The content of ``result.json`` without times and values that depend on them."""
    result = read_json(directory / "result.json")
    return {
        "keys": sorted(result),
        **{name: result[name] for name in ("arm", "seed", "status", "tokens", "error")},
        "heldout": {split: exact(row) for split, row in result["heldout"].items()},
        "curve": [[point["step"], point["real_steps"], exact(point["loss"])] for point in result["curve"]],
        "letters": result["replay"]["phases"],
        "jumps": exact(result["replay"]["norms"]),
        "statistics": sorted(result["statistics"]),
        "overshoots": result["statistics"].get("overshoots"),
        "sample": None if result["sample"] is None else hashlib.sha256(result["sample"].encode()).hexdigest()[:16],
    }


def steps_of(steps: pd.DataFrame) -> dict[str, Any]:
    """Step records without their seconds."""
    rows = steps.to_dict("records")
    columns = list(rows[0])
    assert {"phase", *_EXACT} <= set(columns)
    events = {str(row["step"]): row["event"] for row in rows if isinstance(row["event"], str)}
    return {
        "columns": columns,
        "phases": "".join(row["phase"][0] for row in rows),
        "losses": [exact(row["loss"]) for row in rows if row["loss"] == row["loss"] and row["loss"] is not None],
        **{name: _hash([exact(row[name]) for row in rows]) for name in _EXACT},
        "levels": sorted({row["level"] for row in rows}),
        "events": events,
    }


def exact(value: Any) -> Any:
    """Floats as hexadecimal text, also in nested data."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): exact(inner) for key, inner in value.items()}
    return [exact(inner) for inner in value] if isinstance(value, list | tuple) else value


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
