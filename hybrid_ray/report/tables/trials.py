"""The table of a study's trials, which trials come first, and the bounds of their speedups."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pandas as pd

from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.cells import NONE, Table, loss_unit, number, percent, setting, with_error
from hybrid_ray.run_result import backward_share

__all__ = ["backward_share_of", "ceilings_of", "first_to_see", "plain_scores", "trials_table"]

MOST_TRIALS = 60  # rows of the trials table, so that the page of a study with a thousand trials stays readable
MOST_FIRST = 6  # trials of the Pareto front in the speedup table


def trials_table(study: Study) -> Table:
    """Every trial, or the best `MOST_TRIALS` of a long search.

    The search objective comes first among the measured columns, with the net speedup next to it.
    """
    trials, front = study.trials, set(study.front["number"])
    repeated = len(trials) - len(study.trained)
    if len(trials) > MOST_TRIALS:
        trials = study.trained
    if len(trials) > MOST_TRIALS:
        trials = trials.loc[study.worth[trials.index].nlargest(MOST_TRIALS).index].sort_values("number")
    knobs = [name for name in trials.columns if name.startswith("params_")]
    backward = backward_share_of(study)
    note = (
        f"Score, speedups, excess: higher is better. Loss ({loss_unit(study.words)}, val split), degradation (relative "
        "rise of that loss over the baseline's): lower is better. f: share of nominal steps predicted; 1/(1−f) and "
        "1/(1−f·b) bound the speedup. Net speedup: ± standard error of one run; – if the trial did not finish, or if "
        "its loss lies outside the range of the frontier. Excess: score minus that of stopping early at equal time. "
        "The last rows are plain training of other lengths, N being the job's steps: every setting has to beat them."
    )
    if len(trials) < len(study.trials):
        note = f"The {len(trials)} best of {len(study.trials)} trials; trials.jsonl has all of them. {note}"
    if repeated:
        note += (
            f" {repeated} of the proposed settings would train the same weights as an earlier trial, so they were not "
            "trained and have its measures (equal to trial ...)."
        )
    mode = study.job.objective.mode
    if mode == "pareto":
        note += " On the front: no other finished trial is as good in both speedup and degradation and better in one."
    rows = [_trial_row(row, knobs, backward, front if mode == "pareto" else set()) for _, row in trials.iterrows()]
    lead = _SEARCHED[mode]
    columns = (*lead, *(name for name in _MEASURED if name not in lead))
    return Table(
        title="Trials",
        columns=(
            "trial", "state", *(name.removeprefix("params_").replace("_", " ") for name in knobs), *columns, "remarks",
        ),
        rows=tuple(
            (*first, *(measured.get(name, NONE) for name in columns), remarks)
            for first, measured, remarks in (*rows, *_plain_rows(study, len(knobs)))
        ),
        note=note,
        marked=frozenset(f"{trial:.0f}" for trial in first_to_see(study)["number"]),
    )  # fmt: skip


_MEASURED = (
    "score", "net speedup", "excess", "speedup", "1/(1−f)", "1/(1−f·b)", "degradation", "loss", "steps predicted (f)",
)  # fmt: skip
_SEARCHED = {
    "score": ("score", "net speedup"),
    "net": ("net speedup", "score"),
    "pareto": ("speedup", "degradation", "net speedup"),
}
"""The first measured columns, by objective mode. The net speedup is always next to the score."""


def _trial_row(
    row: pd.Series, knobs: Sequence[str], backward: float | None, front: Collection[int]
) -> tuple[tuple[str, ...], dict[str, str], str]:
    """The trial's number, state and settings; its measured values by column; its remarks."""
    share = row["predicted_share"]
    free, forward = ceilings_of(share, backward)
    measured = {
        "score": _bounded(row["score"], 3),
        "net speedup": with_error(row["net_speedup"], row["net_error"]),
        "excess": _bounded(row["excess"], 3),
        "speedup": number(row["speedup"], 3),
        "1/(1−f)": number(free, 3),
        "1/(1−f·b)": number(forward, 3),
        "degradation": percent(row["degradation"]) if row["degradation"] < 1e3 else NONE,
        "loss": number(row["loss"], 4),
        "steps predicted (f)": percent(share),
    }
    first = (f"{row['number']:.0f}", str(row["state"]), *(setting(row[name]) for name in knobs))
    remarks = (["on the front"] if row["number"] in front else []) + list(_remarks(row))
    return first, measured, ", ".join(remarks) or NONE


def plain_scores(study: Study) -> str:
    """One line: the scores of plain training stopped early, which every setting has to beat."""
    runs = [row for _, row in study.plain.sort_values("length").iterrows() if row["length"] != 1.0]
    scores = ", ".join(f"{row['score']:.3f} at {row['length']:g} N" for row in runs)
    return f"Plain training of other lengths (N is the job's {study.job.train.steps} steps) scores {scores}."


def _plain_rows(study: Study, knobs: int) -> Iterator[tuple[tuple[str, ...], dict[str, str], str]]:
    """Rows like those of the trials for the plain runs of every length that was trained."""
    plain, best = study.plain, study.best
    for _, row in plain.sort_values("length").iterrows():
        measured = {
            "score": _bounded(row["score"], 3),
            "net speedup": "1",
            "speedup": number(row["speedup"], 3),
            "degradation": percent(row["degradation"]),
            "loss": number(row["loss"], 4),
            "steps predicted (f)": percent(0.0),
        }
        beats = best is not None and row["score"] > best["score"]
        length = row["length"]
        name = "baseline" if length == 1.0 else f"{length:g} N steps"
        yield (name, "plain", *[NONE] * knobs), measured, "scores above the best trial" if beats else NONE


def _remarks(row: pd.Series) -> Iterator[str]:
    if pd.notna(row["preset"]):
        yield f"preset {row['preset']}"
    if pd.notna(row["equal_to"]):
        yield f"equal to trial {row['equal_to']:.0f}, not trained"
    if row["diverged"] == 1:
        yield "diverged"
    elif row["state"] == "PRUNED":
        yield "stopped early"
    if row["inert"] == 1:
        yield "inert"
    if pd.notna(row["error"]):
        yield str(row["error"])[:120]


def _bounded(value: Any, digits: int) -> str:
    """A score as cell text; a dash for a diverged trial, whose score is only a placeholder for the worst value."""
    return NONE if pd.notna(value) and value < -1e3 else number(value, digits)


def first_to_see(study: Study) -> pd.DataFrame:
    """The best trial; in mode ``pareto`` up to `MOST_FIRST` trials of the front that predict."""
    if study.job.objective.mode != "pareto":
        return study.ranked.head(1)
    found = study.ranked
    return found[found["number"].isin(study.front["number"])].head(MOST_FIRST)


def ceilings_of(share: float | None, backward: float | None) -> tuple[float | None, float | None]:
    """Upper bounds of the speedup (docs/method.md, section 2): 1 / (1 - f) and 1 / (1 - f b).

    The first holds if a predicted step costs nothing, the second if it costs a forward pass.

    Args:
        share: f, the share of nominal steps that are predicted. None or NaN, if no run finished, makes both None.
        backward: b, the share of a real step's time spent in backward and optimizer. None, if it was not measured,
            makes the second bound None.
    """
    if share is None or pd.isna(share):
        return None, None
    free = 1 / max(1e-9, 1 - share)
    return free, None if backward is None else 1 / max(1e-9, 1 - share * backward)


def backward_share_of(study: Study) -> float | None:
    """The `backward_share` of the baseline; if it was not timed, of the best trial. None if neither was."""
    best = study.best
    runs: list[str | int] = ["baseline", *([] if best is None else [int(best["number"])])]
    shares = (backward_share([result]) for run in runs if (result := study.result(run)) is not None)
    return next((share for share in shares if share is not None), None)
