"""The tables of a report, as text in cells: the same for report.html and report.md."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from hybrid_ray.report.headline import interval_text
from hybrid_ray.report.load import Study

__all__ = [
    "Table", "best_settings", "ceilings_of", "confirmation_tables", "first_to_see", "number", "short", "speedups",
    "trials_table", "with_error",
]  # fmt: skip

MOST_TRIALS = 60  # rows; a study of a thousand trials still gives a page one can read
MOST_FIRST = 6  # rows of a front in a table that is not about all trials
NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table. ``note`` says what a reader must know to read it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    marked: frozenset[str] = frozenset()  # first cells of the rows to look at first

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers: these are set flush right."""
        cells = [[row[place] for row in self.rows if row[place] != NONE] for place in range(len(self.columns))]
        return tuple(bool(column) and all(re.match(r"[-+−<>]?\d", cell) for cell in column) for column in cells)


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """A number for a cell; a dash for one that is missing."""
    return NONE if value is None or pd.isna(value) else f"{value:,.{digits}f}{unit}"


def with_error(value: Any, error: Any, digits: int = 3) -> str:
    """``0.931 ± 0.012``."""
    known = pd.notna(value) and pd.notna(error)
    return number(value, digits) + (f" ± {error:.{digits}f}" if known else "")


def percent(value: Any, digits: int = 1) -> str:
    return NONE if value is None or pd.isna(value) else f"{round(100 * value, digits) + 0.0:.{digits}f}\u00a0%"


def ceilings_of(share: float, backward: float | None) -> tuple[float, float | None]:
    """What a speedup can be at most with this share of steps predicted (docs/method.md, section 2).

    1 / (1 - f) where a predicted step costs nothing, 1 / (1 - f b) where it costs a forward pass. ``backward`` is b,
    the share of backward and optimizer in a real step; None where it was not measured.
    """
    free = 1 / max(1e-9, 1 - share)
    return free, None if backward is None else 1 / max(1e-9, 1 - share * backward)


def backward_share(study: Study) -> float | None:
    """b as measured in the baseline's real steps, else in the best trial's."""
    best = study.best
    for run in ("baseline", None if best is None else int(best["number"])):
        result = None if run is None else study.result(run)
        parts = result.part_seconds if result else {}
        whole = sum(parts.get(part, 0.0) for part in ("data", "forward", "backward", "optimizer"))
        if whole > 0:
            return (parts.get("backward", 0.0) + parts.get("optimizer", 0.0)) / whole
    return None


def confirmation_tables(study: Study) -> list[Table]:
    """One table a confirmed candidate: every arm, every seed, and the hybrid against each arm."""
    if study.statistics is None:
        return []
    seeds = study.statistics["seeds"]
    return [_confirmation(candidate, seeds) for candidate in study.statistics["candidates"]]


def _confirmation(candidate: Mapping[str, Any], seeds: Sequence[int]) -> Table:
    rows = []
    scored = any(run.get("accuracy") is not None for runs in candidate["runs"].values() for run in runs)
    for arm, runs in candidate["runs"].items():
        losses = {run["seed"]: run["loss"] for run in runs}
        done = [run for run in runs if run["loss"] is not None]
        against = candidate["comparisons"].get(f"loss_vs_{arm}")
        rows.append(
            (
                arm.replace("_", " "),
                *(number(losses.get(seed), 4) for seed in seeds),
                number(_mean(run["loss"] for run in done), 4),
                *((percent(_mean(run.get("accuracy") for run in done), 2),) if scored else ()),
                number(_mean(run["time"] for run in done), 1),
                number(_mean(run["train_seconds"] for run in done), 1),
                short(against, 4),
            )
        )
    net = candidate["net_speedup"]
    because = f", since {candidate['refusal']}" if candidate["refusal"] else ""
    note = (
        "Losses on the test split; ratios are paired by seed, with 95 % intervals. "
        f"Verdict: {candidate['verdict']}{because}. Net speedup {interval_text(net)} ({net['n']} seeds)."
    )
    if net.get("note"):
        note += f" Note: {net['note']}."
    settings = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in candidate["params"].items())
    return Table(
        title=f"Candidate trial {candidate['trial']}: {settings}",
        columns=(
            "arm", *(f"loss, seed {seed}" for seed in seeds), "mean loss", *(("accuracy",) if scored else ()),
            "time (plain steps)", "seconds (raw)", "hybrid's loss over this arm's",
        ),
        rows=tuple(rows),
        note=note,
    )  # fmt: skip


def speedups(study: Study) -> Table:
    """Every speedup beside what it could be at most, and beside the net speedup."""
    backward = backward_share(study)
    rows: list[tuple[str, ...]] = []
    for _, trial in first_to_see(study).iterrows():
        free, forward = ceilings_of(trial["predicted_share"], backward)
        rows.append(
            (
                f"trial {trial['number']:.0f}, search, 1 seed", percent(trial["predicted_share"]),
                number(trial["speedup"], 3), NONE, NONE, number(free, 3), number(forward, 3),
                with_error(trial["net_speedup"], trial["net_error"]),
            )
        )  # fmt: skip
    for candidate in (study.statistics or {}).get("candidates", ()):
        shares = [run["predicted_share"] for run in candidate["runs"]["hybrid"] if run["loss"] is not None]
        free, forward = ceilings_of(_mean(shares), backward)
        compared = [candidate["comparisons"].get(name) for name in ("speedup", "step_speedup", "flop_speedup")]
        rows.append(
            (
                f"trial {candidate['trial']}, confirmed", percent(_mean(shares)),
                *(short(one) for one in compared), number(free, 3), number(forward, 3),
                short(candidate["net_speedup"]),
            )
        )  # fmt: skip
    measured = "not measured" if backward is None else f"{backward:.3f}, measured"
    return Table(
        title="Speedups and their ceilings",
        columns=(
            "run", "predicted f", "speedup (time)", "in steps", "in FLOPs", "ceiling 1/(1−f)", "ceiling 1/(1−f·b)",
            "net speedup",
        ),
        rows=tuple(rows),
        note=(
            "All against the baseline but the net speedup, which is against stopping earlier. b, the share of backward "
            f"and optimizer in a real step, is {measured}. The first ceiling holds where a predicted step costs "
            "nothing, the second where it costs a forward pass."
        ),
    )  # fmt: skip


def best_settings(study: Study) -> Table | None:
    """What the best trial ran with: the searched settings first, then the method's others as the job has them."""
    best = study.best
    if best is None:
        return None
    searched = {name.removeprefix("params_"): best[name] for name in best.index if name.startswith("params_")}
    fixed = {name: value for name, value in asdict(study.job.hybrid).items() if name not in searched}
    return Table(
        title=f"Settings of the best trial ({best['number']:.0f})",
        columns=("setting", "value", ""),
        rows=(
            *((name, _plain(value), "searched") for name, value in searched.items()),
            *((name, _plain(value), "") for name, value in fixed.items()),
        ),
    )


def first_to_see(study: Study) -> pd.DataFrame:
    """The best trial; with two objectives those of the front that predict."""
    if study.job.objective.mode != "pareto":
        return study.ranked.head(1)
    found = study.ranked
    return found[found["number"].isin(study.front["number"])].head(MOST_FIRST)


def trials_table(study: Study) -> Table:
    """Every trial, or the best of a long search; what was searched first, score and net speedup side by side."""
    trials, front = study.trials, set(study.front["number"])
    if len(trials) > MOST_TRIALS:
        trials = trials.loc[study.worth.nlargest(MOST_TRIALS).index].sort_values("number")
    knobs = [name for name in trials.columns if name.startswith("params_")]
    backward = backward_share(study)
    note = (
        "Net speedup: – where the loss is off the frontier's range, or the trial did not finish; ± the standard "
        "error of one run. Excess: the score less that of plain training stopped at the same time. The last rows are "
        "plain training of other lengths, N being the job's steps: what every setting has to beat."
    )
    if len(trials) < len(study.trials):
        note = f"The {len(trials)} highest of {len(study.trials)} trials; all are in trials.jsonl. {note}"
    mode = study.job.objective.mode
    if mode == "pareto":
        note += " On the front: no finished trial is as good in both speedup and degradation and better in one."
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


_MEASURED = ("score", "net speedup", "excess", "speedup", "1/(1−f)", "1/(1−f·b)", "degradation", "loss", "predicted f")
_SEARCHED = {
    "score": ("score", "net speedup"),
    "net": ("net speedup", "score"),
    "pareto": ("speedup", "degradation", "net speedup"),
}
"""What leads, by what was searched; a net speedup is never far from a score."""


def _trial_row(
    row: pd.Series, knobs: Sequence[str], backward: float | None, front: Collection[int]
) -> tuple[tuple[str, ...], dict[str, str], str]:
    """Number, state and settings; the measures by name; remarks."""
    share = row["predicted_share"]
    free, forward = ceilings_of(share, backward) if pd.notna(share) else (None, None)
    measured = {
        "score": _bounded(row["score"], 3),
        "net speedup": with_error(row["net_speedup"], row["net_error"]),
        "excess": _bounded(row["excess"], 3),
        "speedup": number(row["speedup"], 3),
        "1/(1−f)": number(free, 3),
        "1/(1−f·b)": number(forward, 3),
        "degradation": percent(row["degradation"]) if row["degradation"] < 1e3 else NONE,
        "loss": number(row["loss"], 4),
        "predicted f": percent(share),
    }
    first = (f"{row['number']:.0f}", str(row["state"]), *(_plain(row[name]) for name in knobs))
    remarks = (["on the front"] if row["number"] in front else []) + list(_remarks(row))
    return first, measured, ", ".join(remarks) or NONE


def _plain_rows(study: Study, knobs: int) -> Iterator[tuple[tuple[str, ...], dict[str, str], str]]:
    """Plain training of every length that was run, as rows like those of trials."""
    plain, best = study.plain, study.best
    for _, row in plain.sort_values("length").iterrows():
        measured = {
            "score": _bounded(row["score"], 3),
            "net speedup": "1",
            "speedup": number(row["speedup"], 3),
            "degradation": percent(row["degradation"]),
            "loss": number(row["loss"], 4),
            "predicted f": percent(0.0),
        }
        beats = best is not None and row["score"] > best["score"]
        length = row["length"]
        name = "baseline" if length == 1.0 else f"stop at {length:g} N" if length < 1.0 else f"go on to {length:g} N"
        yield (name, "plain", *[NONE] * knobs), measured, "scores above the best trial" if beats else NONE


def _remarks(row: pd.Series) -> Iterator[str]:
    if pd.notna(row["preset"]):
        yield f"preset {row['preset']}"
    if row["diverged"] == 1:
        yield "diverged"
    elif row["state"] == "PRUNED":
        yield "stopped early"
    if row["inert"] == 1:
        yield "inert"
    if pd.notna(row["error"]):
        yield str(row["error"])[:120]


def _bounded(value: Any, digits: int) -> str:
    """A score; that of a diverged trial is a penalty without meaning as a number."""
    return NONE if pd.notna(value) and value < -1e3 else number(value, digits)


def short(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``0.93 (0.90–0.96)``."""
    return (
        NONE
        if found is None or found["mean"] is None
        else re.sub(r", 95 % interval (.*)", r" (\1)", interval_text(found, digits))
    )


def _plain(value: Any) -> str:
    if value is None or (not isinstance(value, str | Sequence) and pd.isna(value)):
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _mean(values: Any) -> float:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else float("nan")
