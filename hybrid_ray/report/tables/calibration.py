"""Whether confidence was right: the share of jumps that were paid back, by confidence, from what the runs stored."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid_ray.calibration import Bin, CalibrationCounts
from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.cells import NONE, Table, number, percent, words

__all__ = ["Calibration", "comparison_calibration", "study_calibration"]

_FEWEST, _FEWEST_IN_BIN = 30, 10  # jumps that a score and a share need

Stored = Sequence[Sequence[float]] | None
"""``statistics["calibration"]`` of a run; None for a run that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A table for each group of runs that has measured jumps, and why others have none."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def study_calibration(study: Study) -> Calibration:
    """Of the trials of the search, and of the confirmation's runs."""
    trials = [study.result(int(trial)) for trial in study.trained["number"]]
    confirmed = study.confirmation[study.confirmation["arm"] == "hybrid"]["run"]
    groups = {"trials of the search": trials, "confirmation": [study.result(str(run)) for run in confirmed]}
    return _calibration(
        {
            name: [found.statistics.get("calibration") for found in results if found is not None]
            for name, results in groups.items()
        }
    )


def comparison_calibration(result: Mapping[str, Any]) -> Calibration:
    """Of each configuration that predicts, from a ``comparison.json``."""
    return _calibration(
        {
            words(entry["name"]): [run.get("calibration") for run in entry["runs"]]
            for entry in result["configurations"]
            if any(run["predicted_share"] for run in entry["runs"])
        }
    )


def _calibration(groups: Mapping[str, Sequence[Stored]]) -> Calibration:
    """Of runs by group."""
    tables, notes = [], []
    for name, runs in groups.items():
        known = [rows for rows in runs if rows is not None]
        counts = CalibrationCounts(row for rows in known for row in rows)
        if counts.count:
            tables.append(_table(f"Confidence and outcome: {name}", counts, runs=sum(map(bool, known))))
        elif known:
            notes.append(
                f"{name}: no jump with a confidence. It is computed only where a decision needs it (gate: confidence, "
                "or horizon_mode: scaled); gate: always and gate: random decide without it."
            )
    if not tables and not notes:
        notes.append("No run that predicts has finished yet.")
    return Calibration(tables=tuple(tables), notes=tuple(notes))


def _table(title: str, counts: CalibrationCounts, *, runs: int) -> Table:
    rows = [
        (
            f"{one.low:.1f} to {one.high:.1f}", number(one.count, 0), number(one.probability),
            number(one.share * one.count, 0), _share(one),
        )
        for one in counts.reliability()
        if one.count
    ]  # fmt: skip
    return Table(
        title=title,
        columns=("confidence", "jumps", "mean confidence", "paid back", "share paid back ± standard error"),
        rows=tuple(rows),
        note=_scores(counts, runs),
    )


def _share(one: Bin) -> str:
    if one.count < _FEWEST_IN_BIN:
        return NONE
    return f"{percent(one.share, 0)} ± {percent(math.sqrt(one.share * (1.0 - one.share) / one.count), 0)}"


def _scores(counts: CalibrationCounts, runs: int) -> str:
    what = (
        f"{counts.count} jumps of {runs} {'run' if runs == 1 else 'runs'}. Each confidence was computed before its "
        "jump; training losses at the end of the cycle, noise included, say whether it was paid back. If confidence is "
        f"calibrated, share and mean confidence agree. A share of fewer than {_FEWEST_IN_BIN} jumps is not shown."
    )
    if counts.count < _FEWEST:
        return f"{what} Too few jumps for a Brier score or an AUROC (at least {_FEWEST})."
    share, area = counts.happened / counts.count, counts.auroc
    ranked = (
        f"AUROC {area:.2f} (0.5: confidence does not tell jumps apart; 1: perfectly)."
        if area is not None
        else "No AUROC: all jumps ended alike."
    )
    return (
        f"{what} Brier score {counts.brier:.3f} (lower is better; always forecasting the share of all jumps, "
        f"{percent(share, 0)}, scores {share * (1.0 - share):.3f}). {ranked}"
    )
