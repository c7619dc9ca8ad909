"""The results file of ``monitor.py``: which runs are missing, and its tables."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

RECOVERY, TREND = "all recoveries", "loss trend"
EVERYTHING, NO_TREND = BASES = (frozenset[str](), frozenset((TREND,)))  # what is left out of the runs compared with


@dataclass(frozen=True, kw_only=True)
class Results:
    """The finished runs of a file, by trouble, what was left out, and seed.

    Args:
        path: the file, which may not exist yet.
        troubles: names of the runs that predict.
        plain: steps of the runs that do not, by name.
        parts: rules and recoveries, each left out in turn.
    """

    path: Path
    troubles: Sequence[str]
    plain: Mapping[str, int]
    parts: Sequence[str]
    rows: dict[tuple[str, frozenset[str], int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            if line.endswith("}"):
                row = json.loads(line)
                self.rows[row["trouble"], frozenset(row["off"]), row["seed"]] = row

    def add(self, trouble: str, off: frozenset[str], seed: int, result: Mapping[str, Any]) -> None:
        row = {"trouble": trouble, "off": sorted(off), "seed": seed, **result}
        self.rows[trouble, off, seed] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def variants(self, base: frozenset[str]) -> list[frozenset[str]]:
        return [base | {name} for name in (RECOVERY, *self.parts)]

    def queue(self, seeds: int, only: str = "") -> Iterator[tuple[str, frozenset[str], int]]:
        """All runs that are missing. What a variant needs is known when the run that it is compared with has ended."""
        plain = [(trouble, EVERYTHING, seed) for seed in range(1, seeds + 1) for trouble in self.plain]
        yield from (run for run in plain if run not in self.rows)
        for base in BASES:
            for seed in range(1, seeds + 1):
                for trouble in (name for name in self.troubles if only in name):
                    for off in (base, *self.variants(base)):
                        if (trouble, off, seed) not in self.rows and self.differs(trouble, off, seed):
                            yield trouble, off, seed

    def compared(self, trouble: str, base: frozenset[str], seed: int) -> dict[str, Any] | None:
        """The run with nothing but ``base`` left out. If the trend refused no jump, that is the run with everything."""
        row, everything = (self.rows.get((trouble, off, seed)) for off in (base, EVERYTHING))
        return everything if row is None and everything is not None and not everything["refused"] else row

    def differs(self, trouble: str, off: frozenset[str], seed: int) -> bool:
        """Whether a variant can differ from the run that it is compared with."""
        if off in BASES:
            everything = self.rows.get((trouble, EVERYTHING, seed))
            return everything is None or bool(everything["refused"])
        row = self.rows.get((trouble, off & NO_TREND, seed))
        if row is None:
            return False
        advised = any(name != "continue" for name in row["advised"])
        acted = {**row["count"], **row["advised"], RECOVERY: advised}
        return any(acted.get(name) for name in off)

    def rated(self, row: Mapping[str, Any]) -> float:
        """The loss of a run, relative to AdamW's after as many real steps (mean over the seeds, interpolated)."""
        runs = {
            steps: [row["val"] for key, row in self.rows.items() if key[0] == name]
            for name, steps in self.plain.items()
        }
        known = [(steps, fmean(values)) for steps, values in runs.items() if values]
        return float(row["val"] / np.interp(row["real_steps"], *zip(*known, strict=True)))

    def change(self, trouble: str, off: frozenset[str], base: frozenset[str]) -> str:
        """Change without ``off`` of the loss (`rated`), in percent, and of the real steps: means over the seeds.

        Seeds in which the rule raised no alarm count as no change. Empty if it raised none in any.
        """
        losses, steps, trained = list[float](), list[int](), False
        for seed in sorted({key[2] for key in self.rows if key[0] == trouble}):
            row, other = self.compared(trouble, base, seed), self.rows.get((trouble, off, seed))
            if row is None or (other is None and self.differs(trouble, off, seed)):
                continue  # not trained yet
            trained |= other is not None
            other = other or row
            if None in (row["val"], other["val"]):
                return "not finite"
            losses.append(100.0 * (self.rated(other) / self.rated(row) - 1.0))
            steps.append(other["real_steps"] - row["real_steps"])
        if not any(losses):
            return "0" if trained else ""
        error = f" ± {stdev(losses) / len(losses) ** 0.5:.1f}" if len(losses) > 1 else ""
        return f"{fmean(losses):+.1f}{error} ({fmean(steps):+.0f})"

    def tables(self) -> Iterator[str]:
        """First alarms without any recovery; then the change of the loss, by what was left out and by trouble."""
        yield "| run | first alarms without recoveries and loss trend, seed 1: real step (how often) |\n|---|---|"
        for trouble in self.troubles:
            row = self.rows.get((trouble, NO_TREND | {RECOVERY}, 1)) or self.compared(trouble, NO_TREND, 1)
            if row is not None:
                yield f"| {trouble} | {shown(row['first'], row['count'])} |"
        yield "\n| run | val loss |\n|---|---|"
        for name in self.plain:
            yield f"| {name} | {self._mean(name, EVERYTHING, 'val', 3)} |"
        for base in BASES:
            yield from self._changes(base)
        ended = Counter(
            f"{key[0]} without {sorted(key[1])}" for key, row in self.rows.items() if row["status"] != "finished"
        )
        yield f"\naborted: {dict(ended) or 'none'}"

    def _changes(self, base: frozenset[str]) -> Iterator[str]:
        said = " and ".join(base) or "nothing"
        yield f"\n| left out | {' | '.join(self.troubles)} |\n|---|{'---|' * len(self.troubles)}"
        for label, name, digits in (("val loss", "val", 3), ("real steps", "real_steps", 0)):
            cells = [self._mean(trouble, base, name, digits) for trouble in self.troubles]
            yield f"| {said}: {label} | {' | '.join(cells)} |"
        for off in [*(BASES[1:] if base == EVERYTHING else ()), *self.variants(base)]:
            cells = [self.change(trouble, off, base) for trouble in self.troubles]
            if any(cells):
                yield f"| {' and '.join(sorted(off - base))} | {' | '.join(cells)} |"

    def _mean(self, trouble: str, off: frozenset[str], name: str, digits: int) -> str:
        values = [row[name] for key, row in self.rows.items() if key[:2] == (trouble, off) and row[name] is not None]
        return f"{fmean(values):.{digits}f}" if values else ""


def shown(first: Mapping[str, int], count: Mapping[str, int]) -> str:
    return ", ".join(f"{rule} {step} ({count[rule]})" for rule, step in first.items()) or "none"
