"""What a ladder found, read from its studies: `load_ladder`. Works while it runs and after it was killed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hybrid_ray.config import JobConfig
from hybrid_ray.errors import StoreError
from hybrid_ray.ladder.correlation import Order, RankCorrelation, rank_correlation, same_order
from hybrid_ray.ladder.directory import from_nothing_name, is_ladder, job_of, read_transfer
from hybrid_ray.report.load import Study, load_study
from hybrid_ray.storage.run_cache import read_result

__all__ = ["Ladder", "NextRung", "Pair", "Rung", "load_ladder"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rung:
    """One rung: its study, what was carried to it, and the study that searched it from nothing, if there is one."""

    name: str
    study: Study
    transfer: Mapping[str, Any]  # its entry of transfer.json
    from_nothing: Study | None
    tuning_seconds: Sequence[float]  # wall time of each tuning run

    @property
    def parameters(self) -> int:
        return int(self.transfer["parameters"])

    @property
    def origins(self) -> Mapping[str, int]:
        """By the name of a carried setting: the trial on the rung below."""
        found: Mapping[str, int] = self.transfer["carried"]["origins"]
        return found

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a plain step of the baseline; None before it has run."""
        done = self.study.baseline.dropna(subset=["step_seconds"])
        return None if done.empty else float(done["step_seconds"].iloc[0])

    @property
    def trials(self) -> int:
        """Number of trials that were trained."""
        return len(self.study.trained)

    @property
    def trial_seconds(self) -> float | None:
        """Mean wall time of a finished trial, start and evaluations included."""
        return _mean_seconds(self.study)

    @property
    def seconds(self) -> float:
        """Wall time of all runs: tuning, frontier, trials, confirmation. A run that came from the cache counts too, but
        once: the baseline is often one of the tuning runs.
        """
        study = self.study
        searched = float((study.trained["ended"] - study.trained["started"]).sum())
        return searched + sum(
            {*self.tuning_seconds, *_run_seconds(study.runs, ("baseline", "frontier", "confirmation"))}
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two rungs on which the same settings were tried: step counts and memory as shares of the run."""

    below: str
    above: str
    settings: tuple[tuple[int, int], ...]  # trial on the rung below, trial on the rung above
    values: tuple[tuple[float, float], ...]  # their objectives
    correlation: RankCorrelation
    order: Order | None  # None in a mode whose values have no standard error


@dataclass(frozen=True, kw_only=True, slots=True)
class NextRung:
    """What one more rung would cost, extrapolated from the last two with the same growth once more."""

    parameters: float
    steps: float
    seconds: float  # of all runs of a study like that of the last rung
    memory: float  # bytes of a run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ladder:
    """A ladder's directory: its rungs so far, smallest first."""

    directory: Path
    job: JobConfig
    rungs: tuple[Rung, ...]

    @property
    def finished(self) -> bool:
        """Whether every rung has a finished study."""
        return len(self.rungs) == len(self.job.ladder.rungs) and all(rung.study.finished for rung in self.rungs)

    @property
    def neighbours(self) -> list[Pair]:
        """Every rung with the one above it."""
        return [self._pair(below, above) for below, above in pairwise(self.rungs)]

    @property
    def pairs(self) -> list[Pair]:
        """The neighbours, then rungs farther apart that share at least 3 settings, carried on from rung to rung."""
        farther = (
            self._pair(below, above)
            for distance in range(2, len(self.rungs))
            for below, above in zip(self.rungs, self.rungs[distance:], strict=False)
        )
        return [*self.neighbours, *(pair for pair in farther if pair.correlation.n >= 3)]

    def saved(self, rung: Rung) -> float | None:
        """Seconds of runs that a search from nothing (as many trials as on the first rung) would have taken more."""
        each = rung.trial_seconds
        return None if each is None else each * (self.rungs[0].trials - rung.trials)

    @property
    def next_rung(self) -> NextRung | None:
        """None with fewer than two finished rungs."""
        done = [rung for rung in self.rungs if rung.study.finished and rung.step_seconds]
        if len(done) < 2:
            return None
        last = done[-1]

        def grown(of: Any) -> float:
            return float(of(last) ** 2 / of(done[-2]))

        return NextRung(
            parameters=grown(lambda rung: rung.parameters),
            steps=grown(lambda rung: rung.study.job.train.steps),
            seconds=grown(_baseline_seconds) * last.seconds / _baseline_seconds(last),
            memory=grown(lambda rung: rung.transfer["memory"]),
        )

    def _pair(self, below: Rung, above: Rung) -> Pair:
        rungs = list(self.rungs)
        chain = rungs[rungs.index(below) + 1 : rungs.index(above) + 1]
        known = _objectives(below.study)
        settings = []
        for number in _objectives(above.study):
            start: int | None = number
            for rung in reversed(chain):
                start = _origin(rung, start)
            if start is not None and start in known:
                settings.append((start, number))
        values = [(known[one], _objectives(above.study)[other]) for one, other in settings]
        columns = list(zip(*values, strict=True)) or [(), ()]
        return Pair(
            below=below.name,
            above=above.name,
            settings=tuple(settings),
            values=tuple(values),
            correlation=rank_correlation(*columns),
            order=_order(below.study, above.study, settings, columns) if self.job.objective.mode == "net" else None,
        )


def load_ladder(directory: Path) -> Ladder:
    """Load a ladder. Raises `StoreError` if there is none, or its files are damaged."""
    if not is_ladder(directory):
        raise StoreError(f"{directory} is not a ladder (it has no ladder.yaml)")
    job, transfer = job_of(directory), read_transfer(directory)
    studies = [name for name in job.ladder.rungs if name in transfer and (directory / name / "job.yaml").is_file()]
    return Ladder(
        directory=directory,
        job=job,
        rungs=tuple(
            Rung(
                name=name,
                study=load_study(directory / name),
                transfer=transfer[name],
                from_nothing=_study_if_there(directory / from_nothing_name(name)),
                tuning_seconds=_run_seconds(directory / "tuning", (name,)),
            )
            for name in studies
        ),
    )


def _baseline_seconds(rung: Rung) -> float:
    return (rung.step_seconds or 0.0) * rung.study.job.train.steps


def _run_seconds(directory: Path, folders: Sequence[str]) -> list[float]:
    """Wall time of all runs in these folders."""
    paths = [path.parent for folder in folders for path in sorted((directory / folder).rglob("result.json"))]
    results = [result for path in paths if (result := read_result(path)) is not None]
    return [result.train_seconds + sum(result.other_seconds.values()) for result in results]


def _mean_seconds(study: Study) -> float | None:
    done = study.trained[study.trained["state"] == "COMPLETE"]
    found = float((done["ended"] - done["started"]).mean())
    return None if math.isnan(found) else found


def _study_if_there(directory: Path) -> Study | None:
    return load_study(directory) if (directory / "job.yaml").is_file() else None


def _objectives(study: Study) -> dict[int, float]:
    """The objective of each trial that finished, by number; equal trials included."""
    trials = study.trials.assign(worth=study.worth)
    done = trials[(trials["state"] == "COMPLETE") & (trials["diverged"] != 1)].dropna(subset=["worth"])
    return {int(number): float(worth) for number, worth in zip(done["number"], done["worth"], strict=True)}


def _origin(rung: Rung, number: int | None) -> int | None:
    """The trial on the rung below that a trial's settings were carried from."""
    if number is None:
        return None
    preset = rung.study.trials.set_index("number")["preset"].get(number)
    return rung.origins.get(str(preset))


def _order(below: Study, above: Study, settings: Sequence[tuple[int, int]], columns: Sequence[Any]) -> Order:
    errors = [
        [float(study.trials.set_index("number")["net_error"].fillna(math.inf)[pair[place]]) for pair in settings]
        for place, study in enumerate((below, above))
    ]
    return same_order(*columns, *errors)
