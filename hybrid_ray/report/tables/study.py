"""The tables of a study's report. All cells are text; report.html and report.md show the same tables."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from hybrid_ray.config import HybridConfig
from hybrid_ray.report.headline import interval_text
from hybrid_ray.report.load import Study

__all__ = [
    "Table", "best_settings", "ceilings_of", "confirmation_tables", "first_to_see", "loss_unit", "number", "short",
    "speedups", "trials_table", "with_error",
]  # fmt: skip

MOST_TRIALS = 60  # rows of the trials table, so that the page of a study with a thousand trials stays readable
MOST_FIRST = 6  # trials of the Pareto front in the speedup table
NONE = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table of the report. ``note`` is printed below it and explains its columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    marked: frozenset[str] = frozenset()  # first cells of the highlighted rows

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether all its cells are numbers or dashes. The templates right-align those columns."""
        cells = [[row[place] for row in self.rows if row[place] != NONE] for place in range(len(self.columns))]
        return tuple(bool(column) and all(re.match(r"[-+−<>]?\d", cell) for cell in column) for column in cells)


def number(value: Any, digits: int = 2, unit: str = "") -> str:
    """``value`` as cell text, followed by ``unit``; a dash if it is missing."""
    return NONE if value is None or pd.isna(value) else f"{value:,.{digits}f}{unit}"


def with_error(value: Any, error: Any, digits: int = 3) -> str:
    """A value with its standard error, ``0.931 ± 0.012``; a dash if the value is missing."""
    known = pd.notna(value) and pd.notna(error)
    return number(value, digits) + (f" ± {error:.{digits}f}" if known else "")


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as cell text in percent; a dash if it is missing."""
    return NONE if value is None or pd.isna(value) else f"{round(100 * value, digits) + 0.0:.{digits}f}\u00a0%"


def ceilings_of(share: float, backward: float | None) -> tuple[float, float | None]:
    """Upper bounds of the speedup (docs/method.md, section 2): 1 / (1 - f) and 1 / (1 - f b).

    The first holds if a predicted step costs nothing, the second if it costs a forward pass.

    Args:
        share: f, the share of nominal steps that are predicted.
        backward: b, the share of a real step's time spent in backward and optimizer. None, if it was not measured,
            makes the second bound None.
    """
    free = 1 / max(1e-9, 1 - share)
    return free, None if backward is None else 1 / max(1e-9, 1 - share * backward)


def backward_share(study: Study) -> float | None:
    """Share of a real step's time spent in backward and optimizer (b in `ceilings_of`).

    Measured in the baseline, or in the best trial if the baseline has no timings; None if neither has.
    """
    best = study.best
    for run in ("baseline", None if best is None else int(best["number"])):
        result = None if run is None else study.result(run)
        parts = result.part_seconds if result else {}
        whole = sum(parts.get(part, 0.0) for part in ("data", "forward", "backward", "optimizer"))
        if whole > 0:
            return (parts.get("backward", 0.0) + parts.get("optimizer", 0.0)) / whole
    return None


def confirmation_tables(study: Study) -> list[Table]:
    """One table per confirmed trial: the loss of each arm on each seed, and the hybrid's loss relative to each arm."""
    if study.statistics is None:
        return []
    seeds = study.statistics["seeds"]
    return [_confirmation(candidate, seeds, loss_unit(study.words)) for candidate in study.statistics["candidates"]]


def loss_unit(words: Mapping[str, str]) -> str:
    """The unit of a loss, ``nats per token``; ``words`` of `config.task.task_words`."""
    return f"{words['measure']} per {words['unit']}"


def _confirmation(candidate: Mapping[str, Any], seeds: Sequence[int], unit: str) -> Table:
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
        f"Losses: {unit} on the test split, lower is better. Times: means over the seeds. Loss ratio: paired by seed, "
        "mean with 95 % confidence interval; below 1 the hybrid is better than the arm. "
        f"Verdict: {candidate['verdict']}{because}. Net speedup {interval_text(net)} ({net['n']} seeds)."
    )
    if net.get("note"):
        note += f" Note: {net['note']}."
    settings = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in candidate["params"].items())
    return Table(
        title=f"Trial {candidate['trial']} on fresh seeds ({settings})",
        columns=(
            "arm", *(f"loss, seed {seed}" for seed in seeds), "mean loss", *(("accuracy",) if scored else ()),
            "training time (plain steps)", "training time (s)", "loss ratio, hybrid / arm",
        ),
        rows=tuple(rows),
        note=note,
    )  # fmt: skip


def speedups(study: Study) -> Table:
    """Speedups of the best and the confirmed trials, their upper bounds, and the net speedups."""
    backward = backward_share(study)
    rows: list[tuple[str, ...]] = []
    for _, trial in first_to_see(study).iterrows():
        free, forward = ceilings_of(trial["predicted_share"], backward)
        rows.append(
            (
                f"trial {trial['number']:.0f} in the search (1 seed)", percent(trial["predicted_share"]),
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
                f"trial {candidate['trial']} on fresh seeds", percent(_mean(shares)),
                *(short(one) for one in compared), number(free, 3), number(forward, 3),
                short(candidate["net_speedup"]),
            )
        )  # fmt: skip
    measured = "not measured" if backward is None else f"measured as {backward:.3f}"
    return Table(
        title="Speedups",
        columns=(
            "run", "steps predicted (f)", "speedup in time", "speedup in real steps", "speedup in FLOPs",
            "bound 1/(1−f)", "bound 1/(1−f·b)", "net speedup",
        ),
        rows=tuple(rows),
        note=(
            "Factors, above 1 is faster. Speedups compare with the baseline at the same number of nominal steps; the "
            "net speedup compares with stopping early at the same loss. The speedup in time cannot exceed 1/(1−f) if "
            "a predicted step costs nothing, or 1/(1−f·b) if it costs a forward pass. b, the share of a real step "
            f"spent in backward and optimizer, was {measured}."
        ),
    )  # fmt: skip


def best_settings(study: Study) -> Table | None:
    """Settings of the best trial: first the searched ones, then the method's other settings from the job."""
    best = study.best
    if best is None:
        return None
    searched = {name.removeprefix("params_"): best[name] for name in best.index if name.startswith("params_")}
    gate = study.job.hybrid.gate_kind
    hybrid = asdict(study.job.hybrid)
    hybrid |= {"predictor": hybrid["predictor"]["name"]} | {
        f"predictor.{name}": value for name, value in hybrid["predictor"]["options"].items()
    }
    hybrid |= _in_effect(study.job.hybrid)
    fixed = {name: value for name, value in hybrid.items() if name not in searched}
    unread = {"confidence_threshold": "confidence", "gate_rate": "random"}  # by the gate that reads it
    return Table(
        title=f"Settings of the best trial ({best['number']:.0f})",
        columns=("setting", "value", ""),
        rows=(
            *((name, _plain(value), "searched") for name, value in searched.items()),
            *(
                (name, _plain(value), "" if unread.get(name, gate) == gate else f"no effect with gate {gate}")
                for name, value in fixed.items()
            ),
        ),
    )


def _in_effect(hybrid: HybridConfig) -> dict[str, Any]:
    """The settings that a job may leave to the predictor, with the values that its runs used."""
    return {
        "gate": hybrid.gate_kind,
        "trust": hybrid.trust_kind,
        "first_fraction": hybrid.predicts_from,
        "off_fraction": 1.0 - hybrid.predicts_until,
    }


def first_to_see(study: Study) -> pd.DataFrame:
    """The best trial; in mode ``pareto`` up to `MOST_FIRST` trials of the front that predict."""
    if study.job.objective.mode != "pareto":
        return study.ranked.head(1)
    found = study.ranked
    return found[found["number"].isin(study.front["number"])].head(MOST_FIRST)


def trials_table(study: Study) -> Table:
    """Every trial, or the best `MOST_TRIALS` of a long search.

    The search objective comes first among the measured columns, with the net speedup next to it.
    """
    trials, front = study.trials, set(study.front["number"])
    if len(trials) > MOST_TRIALS:
        trials = trials.loc[study.worth.nlargest(MOST_TRIALS).index].sort_values("number")
    knobs = [name for name in trials.columns if name.startswith("params_")]
    backward = backward_share(study)
    note = (
        f"Score, speedups, excess: higher is better. Loss ({loss_unit(study.words)}, val split), degradation (relative "
        "rise of that loss over the baseline's): lower is better. f: share of nominal steps predicted; 1/(1−f) and "
        "1/(1−f·b) bound the speedup. Net speedup: ± standard error of one run; – if the trial did not finish, or if "
        "its loss lies outside the range of the frontier. Excess: score minus that of stopping early at equal time. "
        "The last rows are plain training of other lengths, N being the job's steps: every setting has to beat them."
    )
    if len(trials) < len(study.trials):
        note = f"The {len(trials)} best of {len(study.trials)} trials; trials.jsonl has all of them. {note}"
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
        "steps predicted (f)": percent(share),
    }
    first = (f"{row['number']:.0f}", str(row["state"]), *(_plain(row[name]) for name in knobs))
    remarks = (["on the front"] if row["number"] in front else []) + list(_remarks(row))
    return first, measured, ", ".join(remarks) or NONE


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


def short(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A mean with its 95 % interval, ``0.93 (0.90–0.96)``; a dash if there is none."""
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
