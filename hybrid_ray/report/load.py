"""A study, read back as pandas tables: `load_study`. Works while the study runs and after it was killed.

Everything is read from the study's own files. The Optuna journal is looked at for one thing only: which trials are
waiting or running, since the study's own rows hold finished trials alone. A study scored anew (study/rescore.py) has
trials of its own; all else is read where the runs lie.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import read_job
from hybrid_ray.config.task import task_words
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.objective import degradation, pareto_front, ranked, score, speedup
from hybrid_ray.report.rescoring import Rescoring, read_rescoring
from hybrid_ray.run_result import TRIAL_COLUMNS, Evaluation, RunResult, StepRecord, TrialEnd, TrialRow
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.results_version import check_study_version

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Study", "load_study"]

_RUN_COLUMNS = (
    "run", "arm", "seed", "status", "loss", "test_loss", "time", "train_seconds", "calibration", "steps",
    "real_steps", "predicted_steps", "predicted_share", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Study:
    """One study directory.

    ``frontier["on_frontier"]`` marks the runs that no shorter run beats: the lower envelope that net speedups refer to.
    Losses are in the ``measure`` and ``unit`` of ``words``, on the val split unless a column says otherwise; ``time``
    is training time in plain steps (seconds divided by the run's own calibration); ``train_seconds`` is the same, raw.
    """

    directory: Path
    job: JobConfig
    environment: Mapping[str, Any]
    events: pd.DataFrame
    trials: pd.DataFrame  # one row a searched trial, by number; knobs are the columns params_<knob>
    baseline: pd.DataFrame  # one row a baseline run
    frontier: pd.DataFrame  # one row a real-steps-only run (the baseline is one), by time; see ``on_frontier``
    confirmation: pd.DataFrame  # one row a confirmation run, with ``candidate`` beside the columns of a run
    statistics: Mapping[str, Any] | None  # confirmation.json, once the confirmation is done
    rescoring: Rescoring | None = None  # what it was searched for, if its trials were scored anew since

    @property
    def name(self) -> str:
        return f"{self.runs.name}/rescored/{self.directory.name}" if self.rescoring else self.directory.name

    @property
    def runs(self) -> Path:
        """Where its runs lie: its own directory, or that of the study it scores anew."""
        return self.rescoring.study if self.rescoring else self.directory

    @property
    def words(self) -> Mapping[str, str]:
        """What its model, data, batch and loss are called (`config.task.task_words`)."""
        job, stored = self.job, self.environment.get("task")
        return stored or task_words(job.task, job.model, job.data, job.train.sequence_length)

    @property
    def finished(self) -> bool:
        """The driver came to its end: nothing is left to resume."""
        return not self.events.empty and bool((self.events["event"] == "finished").iloc[-1])

    @property
    def note(self) -> str | None:
        """Why the driver did less than was asked, in its own words, if it did."""
        last = {} if self.events.empty else self.events.iloc[-1].dropna().to_dict()
        found = last.get("note") or last.get("reason") or last.get("errors")
        return None if not found else "; ".join(found) if isinstance(found, list) else str(found)

    @property
    def worth(self) -> pd.Series:
        """By trial, what the search went by: the score, or in mode ``net`` the net speedup (of a trial stopped early
        the one it was heading for, off the frontier's range its bound). With two objectives the score, which weighs
        both.
        """
        return self.trials["objective"].fillna(self.trials["score"])

    @property
    def front(self) -> pd.DataFrame:
        """The finished trials that no other beats in both speedup and degradation, the fastest first.

        Inert ones count: a trial that they beat in both had better not predicted.
        """
        done = self._eligible.dropna(subset=["speedup", "degradation"])
        points = list(zip(done["speedup"].tolist(), done["degradation"].tolist(), strict=True))
        on_front = pd.Series(pareto_front(points), index=done.index, dtype=bool)
        return done[on_front].sort_values("speedup", ascending=False)

    @property
    def ranked(self) -> pd.DataFrame:
        """The finished trials that predict, best first; with two objectives those on the front come before others."""
        rows = [{str(name): value for name, value in row.items()} for row in self.trials.to_dict("records")]
        numbers = [row["number"] for row in ranked(rows, self.job.objective.mode)]
        return self.trials.set_index("number", drop=False).loc[numbers].reset_index(drop=True)

    @property
    def winner(self) -> pd.Series | None:
        """The finished trial with the highest objective, inert or not; None before one finished."""
        worth = self.worth[self._eligible.index].dropna()
        return None if worth.empty else self.trials.loc[worth.index].iloc[int(worth.to_numpy().argmax())]

    @property
    def best(self) -> pd.Series | None:
        """The finished trial to look at first: never a diverged, failed, stopped or inert one. None: no such trial.

        The highest by what was searched: the score, the net speedup; with two objectives, of the ``front``, the score.
        """
        order = self.ranked
        return None if order.empty else order.iloc[0]

    @property
    def plain(self) -> pd.DataFrame:
        """Runs of real steps only that were stopped early (`frontier`), with the measures of a trial: what each setting
        has to beat. Their net speedup is 1.
        """
        done = self.frontier[self.frontier["status"] == "finished"]
        whole = done[done["length"] == 1.0]
        if whole.empty:
            return done.iloc[:0].assign(speedup=[], degradation=[], score=[])
        time, loss = float(whole["time"].iloc[0]), float(whole["loss"].iloc[0])
        faster = [speedup(time, one) for one in done["time"]]
        worse = [degradation(one, loss) for one in done["loss"]]
        scores = [score(*pair, self.job.objective) for pair in zip(faster, worse, strict=True)]
        return done.assign(speedup=faster, degradation=worse, score=scores)

    @property
    def _eligible(self) -> pd.DataFrame:
        return self.trials[(self.trials["state"] == "COMPLETE") & (self.trials["diverged"] != 1)]

    def run_directory(self, run: int | str) -> Path:
        """Of a trial (its number) or another run (``"baseline"``, ``"frontier/0.40"``)."""
        return self.runs / (run if isinstance(run, str) else f"trials/{run:04d}")

    def steps(self, run: int | str) -> pd.DataFrame:
        """Step records of one run, one row a nominal step; those so far while it runs.

        Raises:
            StoreError: there is no such run, or it left no steps.
        """
        directory = self.run_directory(run)
        # The lines first: they go away only after the table is whole, so where both are, a kill came in between.
        if (directory / "steps.jsonl").exists():
            rows = {row["step"]: row for row in read_jsonl(directory / "steps.jsonl")}
            return pd.DataFrame([rows[step] for step in sorted(rows)], columns=_names(StepRecord))
        if (directory / "steps.parquet").exists():
            return pd.read_parquet(directory / "steps.parquet")
        raise StoreError(f"{directory} has no steps: it is no run of this study, or has not begun")

    def result(self, run: int | str) -> RunResult | None:
        """What a run left behind; None while it runs, or when it never came to an end."""
        return _result(self.run_directory(run))

    def curve(self, run: int | str) -> pd.DataFrame:
        """Held-out loss over a run: step, loss, real_steps, train_seconds, time. Empty while there is no result."""
        result = self.result(run)
        points = result.curve if result else ()
        return pd.DataFrame([asdict(point) for point in points], columns=_names(Evaluation))


def load_study(study: Path | str | None = None, *, studies_dir: Path | str = "studies") -> Study:
    """Load a study by directory, by name under ``studies_dir``, or the newest one there.

    Raises:
        StoreError: there is no such study, or its files are damaged; the message says what there is instead.
    """
    directory = _find(study, Path(studies_dir))
    check_study_version(directory)
    try:
        job = read_job(directory / "job.yaml")
    except ConfigError as error:
        raise StoreError(f"{directory / 'job.yaml'} cannot be used: {error}") from error
    rescoring = read_rescoring(directory)
    runs = rescoring.study if rescoring else directory
    environment, statistics = runs / "environment.json", runs / "confirmation.json"
    baseline = [row for _, row in _runs(runs, "baseline/result.json")]
    frontier = [{"length": float(path.parent.name), **row} for path, row in _runs(runs, "frontier/*/result.json")]
    frontier += [{"length": 1.0, **row} for row in baseline]
    confirmation = [
        {"candidate": path.relative_to(runs / "confirmation").parts[0], **row}
        for path, row in _runs(runs, "confirmation/*/*/result.json")
    ]
    return Study(
        directory=directory,
        job=job,
        environment=read_json(environment) if environment.exists() else {},
        events=pd.DataFrame(read_jsonl(runs / "events.jsonl")),
        trials=_trials(directory),
        baseline=pd.DataFrame(baseline, columns=list(_RUN_COLUMNS)),
        frontier=_frontier(frontier),
        confirmation=pd.DataFrame(confirmation, columns=["candidate", *_RUN_COLUMNS]),
        statistics=read_json(statistics) if statistics.exists() else None,
        rescoring=rescoring,
    )


def _names(record: type[StepRecord | Evaluation]) -> list[str]:
    return [field.name for field in fields(record)]


def _find(study: Path | str | None, studies: Path) -> Path:
    known = {path.parent.name: path.parent for path in studies.glob("*/job.yaml")}
    if study is None:
        if not known:
            raise StoreError(f"there is no study under {studies}: run one with `hybrid-ray run jobs/local.yaml`")
        return max(known.values(), key=_touched)
    for directory in (Path(study), studies / study):
        if (directory / "job.yaml").is_file():
            return directory
    there = f"studies under {studies}: {', '.join(sorted(known))}" if known else f"there is no study under {studies}"
    raise StoreError(f"{study} is not a study (it has no job.yaml); {there}")


def _touched(directory: Path) -> float:
    """When the driver last did something in a study (writing its report anew does not count)."""
    return max(path.stat().st_mtime for path in (directory / "job.yaml", directory / "events.jsonl") if path.exists())


def _result(directory: Path) -> RunResult | None:
    path = directory / "result.json"
    if not path.exists():
        return None
    try:
        return RunResult.from_dict(read_json(path))
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path} is not the result of a run: {error}") from error


def _runs(directory: Path, pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    """The result files that match, each with its row of a run table."""
    rows = []
    for path in sorted(directory.glob(pattern)):
        result = _result(path.parent)
        assert result is not None
        row = {name: getattr(result, name) for name in _RUN_COLUMNS if hasattr(result, name)}
        row["run"] = path.parent.relative_to(directory).as_posix()
        for column, split in (("loss", "val"), ("test_loss", "test")):
            row[column] = result.heldout[split].loss if split in result.heldout else None
        rows.append((path, row))
    return rows


def _frontier(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["length", *_RUN_COLUMNS]).sort_values("time", ignore_index=True)
    losses = table["loss"].where(table["status"] == "finished").astype(float)
    before = losses.cummin().shift(fill_value=float("inf")).ffill()
    return table.assign(on_frontier=losses < before)


def _trials(directory: Path) -> pd.DataFrame:
    rows = [{**row, "end": str(TrialEnd.of(row))} for row in read_jsonl(directory / "trials.jsonl")]
    kept = {row["number"] for row in rows}
    rows += [row for row in _open_trials(directory / "optuna.journal") if row["number"] not in kept]
    knobs = list(dict.fromkeys(name for row in rows for name in row if name.startswith("params_")))
    others = dict.fromkeys(name for row in rows for name in row if name not in TRIAL_COLUMNS and name not in knobs)
    columns = [*TRIAL_COLUMNS[:3], *knobs, *TRIAL_COLUMNS[3:], *others]
    table = pd.DataFrame(rows, columns=columns).sort_values("number", ignore_index=True)
    numeric = [column.name for column in fields(TrialRow) if column.type == float | None]
    table[numeric] = table[numeric].astype(float)
    return table.astype({"number": int})


def _open_trials(journal: Path) -> list[dict[str, Any]]:
    """Trials that Optuna knows as running or waiting."""
    if not journal.exists():
        return []
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    storage = JournalStorage(JournalFileBackend(str(journal)))
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "started": trial.datetime_start.timestamp() if trial.datetime_start else None,
            **{f"params_{name}": value for name, value in _settings(trial).items()},
        }
        for study in storage.get_all_studies()
        for trial in storage.get_all_trials(study._study_id, states=(TrialState.RUNNING, TrialState.WAITING))
    ]


def _settings(trial: "FrozenTrial") -> Mapping[str, Any]:
    """Of a trial that runs; or those queued for one that waits."""
    return trial.params or trial.system_attrs.get("fixed_params", {})
