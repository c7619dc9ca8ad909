"""Reads a study as pandas tables: `load_study`. Works while the study runs and after it was killed.

Everything comes from the study's own files, except the list of waiting and running trials, which comes from the Optuna
journal. A rescored study (study/rescore.py) has its own trials; everything else is read from the study it rescores.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hybrid_ray.config import JobConfig
from hybrid_ray.config.jobfile import job_from_text, read_job
from hybrid_ray.config.task import task_words
from hybrid_ray.errors import ConfigError, StoreError
from hybrid_ray.objective import degradation, pareto_front, ranked, score, speedup
from hybrid_ray.report.rescoring import Rescoring, read_rescoring
from hybrid_ray.run_result import TRIAL_COLUMNS, Evaluation, RunResult, StepRecord, TrialEnd, TrialRow
from hybrid_ray.storage.json_files import read_json
from hybrid_ray.storage.jsonl import read_jsonl
from hybrid_ray.storage.parquet import read_steps
from hybrid_ray.storage.results_version import check_study_version

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

__all__ = ["Study", "load_study"]

log = logging.getLogger("hybrid_ray")

_RUN_COLUMNS = (
    "run", "arm", "seed", "status", "loss", "test_loss", "time", "train_seconds", "step_seconds", "steps",
    "real_steps", "predicted_steps", "predicted_share", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Study:
    """A study directory as tables. ``headline`` is the sentence at the top of its report, ``net_speedup`` its figure.

    Units: losses are in ``words["measure"]`` per ``words["unit"]`` (nats per token for GPT-2), on the val split unless
    the column says otherwise. ``time`` is training time in plain steps: ``train_seconds`` divided by the run's own
    ``step_seconds`` (seconds per plain step). ``frontier["on_frontier"]`` marks the runs that no shorter run beats; net
    speedups refer to this lower envelope.
    """

    directory: Path
    job: JobConfig
    environment: Mapping[str, Any]
    events: pd.DataFrame
    trials: pd.DataFrame  # one row per trial, by number; searched settings are the columns params_<name>
    baseline: pd.DataFrame  # one row per baseline run
    frontier: pd.DataFrame  # one row per run of real steps only (the baseline is one), sorted by time
    confirmation: pd.DataFrame  # one row per confirmation run; ``candidate`` is the trial it confirms
    statistics: Mapping[str, Any] | None  # confirmation.json, once the confirmation has finished
    rescoring: Rescoring | None = None  # set if the trials were rescored

    def __repr__(self) -> str:
        return f"<Study {self.directory}, {len(self.trials)} trials: {self.headline}>"

    @property
    def headline(self) -> str:
        """What was found, in one sentence: the first one of the report."""
        from hybrid_ray.report.headline import headline  # it imports this module

        return headline(self).text

    @property
    def net_speedup(self) -> Mapping[str, Any] | None:
        """The net speedup that the report leads with: ``mean``, ``low``, ``high`` (the 95 % interval; an end that the
        frontier does not reach is None) and ``n`` seeds of a confirmed trial, on fresh seeds and the test split.

        None before the best trial was confirmed. ``best`` has the search's own figure, of one seed on the val split.
        """
        from hybrid_ray.report.headline import confirmed_candidate  # it imports this module

        candidate = confirmed_candidate(self.statistics, self.best)
        return candidate["net_speedup"] if candidate else None

    @property
    def name(self) -> str:
        return f"{self.runs.name}/rescored/{self.directory.name}" if self.rescoring else self.directory.name

    @property
    def runs(self) -> Path:
        """The directory of its runs: its own, or that of the study it rescores."""
        return self.rescoring.study if self.rescoring else self.directory

    @property
    def words(self) -> Mapping[str, str]:
        """Names of its model, data, batch and loss unit (`config.task.task_words`)."""
        job, stored = self.job, self.environment.get("task")
        return stored or task_words(job.task, job.model, job.data, job.train.sequence_length)

    @property
    def finished(self) -> bool:
        """Whether the driver finished, so that nothing is left to resume."""
        return not self.events.empty and bool((self.events["event"] == "finished").iloc[-1])

    def ended(self, event: str, note: str | None) -> "Study":
        """The study as it will be once this last event is stored."""
        return replace(self, events=pd.concat([self.events, pd.DataFrame([{"event": event, "note": note}])]))

    @property
    def note(self) -> str | None:
        """The driver's reason for doing less than the job asked; None if it did everything."""
        last = {} if self.events.empty else self.events.iloc[-1].dropna().to_dict()
        found = last.get("note") or last.get("reason") or last.get("errors")
        return None if not found else "; ".join(found) if isinstance(found, list) else str(found)

    @property
    def trained(self) -> pd.DataFrame:
        """The trials that have a run of their own, without those that got the result of an equal trial."""
        return self.trials[self.trials["equal_to"].isna()]

    @property
    def finished_trials(self) -> pd.DataFrame:
        """The trained trials that finished and did not diverge, inert or not."""
        trials = self.trained
        return trials[(trials["state"] == "COMPLETE") & (trials["diverged"] != 1)]

    @property
    def worth(self) -> pd.Series:
        """The objective of each trial; higher is better.

        In modes ``score`` and ``pareto`` it is the score. In mode ``net`` it is the net speedup: projected for a trial
        that was stopped early, and a bound where the loss is outside the frontier's range.
        """
        return self.trials["objective"].fillna(self.trials["score"])

    @property
    def front(self) -> pd.DataFrame:
        """The Pareto front of speedup and degradation among the finished trials, fastest first.

        Trials that barely predict (inert) count: a trial that they dominate gained nothing from predicting.
        """
        done = self.finished_trials.dropna(subset=["speedup", "degradation"])
        points = list(zip(done["speedup"].tolist(), done["degradation"].tolist(), strict=True))
        on_front = pd.Series(pareto_front(points), index=done.index, dtype=bool)
        return done[on_front].sort_values("speedup", ascending=False)

    @property
    def ranked(self) -> pd.DataFrame:
        """The finished trials that predict, best first; in mode ``pareto`` those on the front come first."""
        rows = [{str(name): value for name, value in row.items()} for row in self.trials.to_dict("records")]
        numbers = [row["number"] for row in ranked(rows, self.job.objective.mode)]
        return self.trials.set_index("number", drop=False).loc[numbers].reset_index(drop=True)

    @property
    def winner(self) -> pd.Series | None:
        """The finished trial with the highest objective, inert or not; None before one finished."""
        worth = self.worth[self.finished_trials.index].dropna()
        return None if worth.empty else self.trials.loc[worth.index].iloc[int(worth.to_numpy().argmax())]

    @property
    def best(self) -> pd.Series | None:
        """The finished trial with the highest objective that neither diverged nor is inert; None if there is none.

        In mode ``pareto`` it is the trial of the ``front`` with the highest score.
        """
        order = self.ranked
        return None if order.empty else order.iloc[0]

    @property
    def plain(self) -> pd.DataFrame:
        """The finished runs of real steps only (`frontier`) with speedup, degradation and score, as a trial has them.

        Every setting has to beat these. Their net speedup is 1.
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

    def run_directory(self, run: int | str) -> Path:
        """The directory of a trial (by number) or of another run (``"baseline"``, ``"frontier/0.40"``)."""
        return self.runs / (run if isinstance(run, str) else f"trials/{run:04d}")

    def steps(self, run: int | str) -> pd.DataFrame:
        """Step records of one run (`StepRecord`), one row per nominal step; the steps so far while it runs.

        Raises:
            StoreError: there is no such run, or it has no steps.
        """
        directory = self.run_directory(run)
        result = self.result(run)  # first, since a run writes it after its steps
        rows = read_steps(directory)
        if result is not None and result.status == "finished" and rows and len(rows) != result.steps:
            raise StoreError(f"{directory} has records of {len(rows)} of its {result.steps} steps: they are damaged")
        if not rows:
            raise StoreError(f"{directory} has no steps: it is not a run of this study, or it has not started")
        return pd.DataFrame(rows, columns=_names(StepRecord))

    def result(self, run: int | str) -> RunResult | None:
        """The result of a run; None while it runs, or if it never ended."""
        return _result(self.run_directory(run))

    def curve(self, run: int | str) -> pd.DataFrame:
        """Held-out losses over a run: step, loss, real_steps, train_seconds, time. Empty before the run has ended."""
        result = self.result(run)
        points = result.curve if result else ()
        return pd.DataFrame([asdict(point) for point in points], columns=_names(Evaluation))


def load_study(study: Path | str | None = None, *, studies_dir: Path | str = "studies") -> Study:
    """Load a study by directory, by name under ``studies_dir``, or (None) the newest one there.

    Raises:
        StoreError: there is no such study (the message lists those there are), or its files are damaged.
        ConfigError: the study was made by a version of hybrid_ray that this one cannot read.
    """
    directory = _find(study, Path(studies_dir))
    check_study_version(directory)
    rescoring = read_rescoring(directory)
    runs = rescoring.study if rescoring else directory
    place, statistics = runs / "environment.json", runs / "confirmation.json"
    environment = read_json(place) if place.exists() else {}
    events = read_jsonl(runs / "events.jsonl")
    journal = _journal(directory / "optuna.journal")  # before trials.jsonl, where the row of a trial comes first
    trials = _trials(directory, journal)
    if rescoring is None:
        lost = [] if not statistics.exists() else _lost_confirmations(directory, read_json(statistics))
        ended = {trial.number for trial in journal if trial.state.is_finished()}
        _check_complete(directory, events, lost, sorted(ended - set(trials["number"])))
    try:
        as_run = environment.get("job") if rescoring is None else None
        job = job_from_text(as_run, directory / "job.yaml") if as_run else read_job(directory / "job.yaml")
    except ConfigError as error:
        raise StoreError(f"{directory / 'job.yaml'} cannot be used: {error}") from error
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
        environment=environment,
        events=pd.DataFrame(events),
        trials=trials,
        baseline=pd.DataFrame(baseline, columns=list(_RUN_COLUMNS)),
        frontier=_frontier(frontier),
        confirmation=pd.DataFrame(confirmation, columns=["candidate", *_RUN_COLUMNS]),
        statistics=read_json(statistics) if statistics.exists() else None,
        rescoring=rescoring,
    )


def _check_complete(directory: Path, events: Sequence[Mapping[str, Any]], lost: list[str], gone: list[int]) -> None:
    """Refuse a study that has lost files (``lost``) or trials (``gone``), whose tables would look complete.

    Raises:
        StoreError: something that the events say has been made is missing.
    """
    if not events or events[0]["event"] != "created":
        lost.append("events.jsonl has lost its beginning")
    stages = {event["stage"]: event for event in events if event["event"] == "stage"}
    if "search" in stages:
        runs = stages.get("frontier", {}).get("runs", ())
        lost += [f"{run}/result.json is missing" for run in runs if not (directory / run / "result.json").is_file()]
    finished = bool(events) and events[-1]["event"] == "finished"
    if finished and "confirmation" in stages and not (directory / "confirmation.json").is_file():
        lost.append("confirmation.json is missing")
    if gone:
        lost.append(f"trials.jsonl has lost {len(gone)} trials that have ended (trial {gone[0]})")
    if lost:
        raise StoreError(
            f"{directory} is damaged: {'; '.join(lost)}. `hybrid-ray resume {directory}` rebuilds what it can from the "
            "other files, and runs the rest again"
        )


def _lost_confirmations(directory: Path, statistics: Mapping[str, Any]) -> list[str]:
    """The finished runs in confirmation.json that have lost their result."""
    runs = {
        f"confirmation/{'baseline' if arm == 'baseline' else one['trial']}/{arm}-{row['seed']}"
        for one in statistics["candidates"]
        for arm, rows in one["runs"].items()
        for row in rows
        if row["status"] == "finished"
    }
    return [f"{run}/result.json is missing" for run in sorted(runs) if not (directory / run / "result.json").is_file()]


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
    there = f"there is no study under {studies}"
    for directory in (studies, Path(study)):
        if names := sorted(path.parent.name for path in directory.glob("*/job.yaml")):
            there = f"studies under {directory}: {', '.join(names)}"
    raise StoreError(f"{study} is not a study (it has no job.yaml); {there}")


def _touched(directory: Path) -> float:
    """When the driver last worked on a study; writing its report does not count."""
    times = []
    for name in ("job.yaml", "events.jsonl"):
        with contextlib.suppress(FileNotFoundError):
            times.append((directory / name).stat().st_mtime)
    return max(times, default=0.0)


def _result(directory: Path) -> RunResult | None:
    """The result of a run; None if there is none, or no longer, since a running study may train it again."""
    path = directory / "result.json"
    try:
        return RunResult.from_dict(read_json(path))
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not the result of a run: {error}") from error


def _runs(directory: Path, pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    """The result files that match ``pattern``, each with its row of a run table."""
    rows = []
    for path in sorted(directory.glob(pattern)):
        result = _result(path.parent)
        if result is None:
            continue
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


def _trials(directory: Path, journal: "list[FrozenTrial]") -> pd.DataFrame:
    rows = [{**row, "end": str(TrialEnd.of(row))} for row in read_jsonl(directory / "trials.jsonl")]
    kept = {row["number"] for row in rows}
    rows += [row for row in _open_trials(journal) if row["number"] not in kept]
    knobs = list(dict.fromkeys(name for row in rows for name in row if name.startswith("params_")))
    others = dict.fromkeys(name for row in rows for name in row if name not in TRIAL_COLUMNS and name not in knobs)
    columns = [*TRIAL_COLUMNS[:3], *knobs, *TRIAL_COLUMNS[3:], *others]
    table = pd.DataFrame(rows, columns=columns).sort_values("number", ignore_index=True)
    numeric = [column.name for column in fields(TrialRow) if column.type == float | None]
    table[numeric] = table[numeric].astype(float)
    return table.astype({"number": int})


def _open_trials(journal: "list[FrozenTrial]") -> list[dict[str, Any]]:
    """Trials that are running or waiting, from the Optuna journal."""
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "started": trial.datetime_start.timestamp() if trial.datetime_start else None,
            **{f"params_{name}": value for name, value in _settings(trial).items()},
        }
        for trial in journal
        if not trial.state.is_finished()
    ]


def _journal(journal: Path) -> "list[FrozenTrial]":
    """All trials in an Optuna journal; none if it is missing or damaged, since the results are in other files."""
    if not journal.exists():
        return []
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return [trial for study in storage.get_all_studies() for trial in storage.get_all_trials(study._study_id)]
    except Exception as error:  # Optuna raises many types for a damaged journal
        log.warning("%s cannot be read (%s): running and queued trials are not listed", journal, type(error).__name__)
        return []


def _settings(trial: "FrozenTrial") -> Mapping[str, Any]:
    """The settings of a running trial, or those queued for a waiting one."""
    return trial.params or trial.system_attrs.get("fixed_params", {})
