"""Connects Ray Tune to an Optuna study: ``suggest`` asks Optuna, ``on_trial_complete`` tells it the result.

Ray's own OptunaSearch records a stopped trial as COMPLETE with its partial value and leaves a NaN trial RUNNING
forever. Here every trial gets the state that fits its end:

    finished                 COMPLETE   its value(s)
    stopped by the scheduler PRUNED     its last intermediate value
    diverged                 PRUNED     with the violated constraint ``diverged``, so that TPE avoids it
    exception, out of memory FAIL
    driver asked to stop     FAIL       its row's error says ``interrupted``; its settings are queued again

Too few predicted steps also violate a constraint (``inert``): such a trial can't be the best, and its score, close to
that of plain training, would attract the sampler.

Settings that train the same weights as an earlier trial's are not trained: Optuna gets the same result, and the row
names that trial (``equal_to``). If the earlier one is still running, the result follows when it ends.

A trial's row is stored *before* Optuna gets the result, so that a kill between the two loses nothing.
"""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from hybrid_ray.errors import ConfigError
from hybrid_ray.evaluation.equal_settings import TrainedSettings
from hybrid_ray.evaluation.summary import INERT_SHARE
from hybrid_ray.run_result import MEASURES, TrialEnd, TrialRow

__all__ = [
    "MOST_EQUAL",
    "Listener",
    "OptunaSearcher",
    "queue_again",
    "tell",
    "trial_row",
    "values_of",
    "was_interrupted",
]

MOST_EQUAL = 50
"""So many proposals in a row that equal earlier trials end a search: its space seems to have no other settings."""

_REPEATS = "repeats"
"""User attribute of an Optuna trial: the number of the interrupted one whose settings it tries again."""

Mode = Literal["score", "net", "pareto"]


class Listener(Protocol):
    """Receives the events of trials, in the driver process."""

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None: ...

    def reported(self, number: int, result: Mapping[str, Any]) -> None: ...

    def ended(self, row: Mapping[str, Any]) -> None:
        """Stores the row. Called before Optuna gets the result."""
        ...

    def gave_up(self, numbers: Sequence[int]) -> None:
        """These trials failed in a row, so no more are started. Called again if a trial that still runs also fails."""
        ...


@dataclass(slots=True)
class _Running:
    trial: optuna.Trial
    started: float
    reported: set[int] = field(default_factory=set)


class OptunaSearcher(Searcher):
    """Asks an Optuna study for settings and tells it their results.

    Args:
        study: in the study directory; this process is its only writer.
        ask: the search space: settings from an Optuna trial.
        mode: ``pareto`` tells (speedup, degradation), the others the one ``objective``.
        listener: receives the events of every trial; ``ended`` stores its row.
        may_start: whether another trial may start (budgets, a requested stop).
        room: how many trials may be under way, at least 1. It may change.
        reason: why a trial raised, by its number.
        trained: recognises settings that train the same weights; None: every trial is trained.
        rows: the trials of earlier sessions.
        stop_after_failures: number of failures in a row that end the search.
        clock: seconds, for the start and end of trials; a simulated study has its own.
    """

    def __init__(
        self,
        study: optuna.Study,
        ask: Callable[[optuna.Trial], Mapping[str, Any]],
        *,
        mode: Mode,
        listener: Listener,
        may_start: Callable[[], bool] = lambda: True,
        room: Callable[[], int] = lambda: sys.maxsize,
        reason: Callable[[int], str] = lambda number: "the trial's process died",
        trained: TrainedSettings | None = None,
        rows: Iterable[Mapping[str, Any]] = (),
        stop_after_failures: int = 5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._study, self._ask, self._objective = study, ask, mode
        self._listener, self._may_start, self._room, self._reason = listener, may_start, room, reason
        self._stop_after_failures, self._clock = stop_after_failures, clock
        self._failed: list[int] = []  # consecutive failures
        self.gave_up = False  # set after too many failures in a row; a trial that finishes later does not reset it
        self._running: dict[str, _Running] = {}
        self._trained = trained
        self._rows = {row["number"]: row for row in rows}
        self._waiting: dict[int, list[optuna.Trial]] = {}  # by the running trial that they equal
        self._equal = 0  # consecutive proposals that equal earlier trials

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ignores Tune's metric and mode: the searcher has its own."""
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the sampler proposes nothing new any more."""
        return self._equal >= MOST_EQUAL

    def suggest(self, trial_id: str) -> Any:  # a dict, None or FINISHED; Ray's annotation lacks the last
        """Settings for a new trial that equals no earlier one; None if there is no room for it at the moment; FINISHED
        if no more may start.
        """
        while not (self.gave_up or self.exhausted) and self._may_start():
            if len(self._running) >= self._room():
                return None
            trial = self._study.ask()
            try:
                params = dict(self._ask(trial))
            except BaseException:
                self._study.tell(trial, state=TrialState.FAIL)
                raise
            equal_to = self._equal_to(trial.number, params)
            if equal_to is None:
                self._equal = 0
                self._running[trial_id] = _Running(trial=trial, started=self._clock())
                self._listener.started(trial.number, params, trial.user_attrs.get("preset"))
                return {"number": trial.number, "params": params}
            self._equal += 1
            if equal_to in self._rows:
                self._end_equal(trial, self._rows[equal_to])
            else:
                self._waiting.setdefault(equal_to, []).append(trial)
        return Searcher.FINISHED

    def _equal_to(self, number: int, params: Mapping[str, Any]) -> int | None:
        """The trial that trains the same weights. If there is none, this one will be trained."""
        if self._trained is None:
            return None
        try:
            found = self._trained.equal(params)
            if found is None:
                self._trained.add(number, params)
        except ConfigError:  # impossible settings: the trial itself reports them
            return None
        return found

    def _end_equal(self, trial: optuna.Trial, row: Mapping[str, Any]) -> None:
        """Record a trial with the result of the equal one that was trained.

        If that one failed or was interrupted, the settings are queued again.
        """
        now = self._clock()
        own = {"number": trial.number, "preset": trial.user_attrs.get("preset"), "started": now, "ended": now}
        own |= {f"params_{name}": value for name, value in trial.params.items()}
        if row["state"] == "FAIL":
            error = f"{TrialEnd.INTERRUPTED}: the equal trial {row['number']} failed; the settings are queued again"
            own |= {"end": TrialEnd.INTERRUPTED, "error": error}
        else:
            own |= {"equal_to": row["number"]}
            for step, value in self._study.get_trials(deepcopy=False)[row["number"]].intermediate_values.items():
                trial.report(value, step)
        row = {name: value for name, value in row.items() if not name.startswith("params_")} | own
        self._listener.ended(row)
        tell(self._study, trial, row, self._objective)
        if row["state"] == "FAIL":
            queue_again(self._study, trial.number)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation: reported to Optuna as an intermediate value (Optuna has none for several objectives)."""
        running = self._running[trial_id]
        if self._objective != "pareto" and result["step"] > 0 and result["step"] not in running.reported:
            running.reported.add(result["step"])
            running.trial.report(float(result["objective"]), int(result["step"]))
        self._listener.reported(running.trial.number, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial. With an error, Tune passes no result. A second call is ignored."""
        if trial_id not in self._running:
            return
        running = self._running[trial_id]
        number = running.trial.number
        if error or not result or "objective" not in result:
            result = {"status": "failed", "error": self._reason(number)}
        end = TrialEnd.of(result)
        if end.state == "FAIL":
            self._end(trial_id, end, result)
            self._count_failure(number)
            return
        if not self.gave_up:
            self._failed.clear()
        self.on_trial_result(trial_id, result)
        self._end(trial_id, end, result)

    def _count_failure(self, number: int) -> None:
        self._failed.append(number)
        self.gave_up |= len(self._failed) >= self._stop_after_failures
        if self.gave_up:
            self._listener.gave_up(tuple(self._failed))

    def close(self, why: str) -> None:
        """Record every open trial as interrupted. Afterwards none is RUNNING."""
        for trial_id, running in list(self._running.items()):
            said = f"{TrialEnd.INTERRUPTED}: {why}; its settings are queued again"
            self._end(trial_id, TrialEnd.INTERRUPTED, {"status": "failed", "error": said})
            queue_again(self._study, running.trial.number)

    def _end(self, trial_id: str, end: TrialEnd, result: Mapping[str, Any]) -> None:
        running = self._running[trial_id]
        row = trial_row(running.trial, end, result, started=running.started, ended=self._clock())
        self._listener.ended(row)
        del self._running[trial_id]
        tell(self._study, running.trial, row, self._objective)
        if self._trained is not None:
            self._rows[running.trial.number] = row
            if end.state == "FAIL":
                self._trained.remove(running.trial.number)
            for trial in self._waiting.pop(running.trial.number, ()):
                self._end_equal(trial, row)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Does nothing: a study is resumed from the journal in its directory."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing, as `save_to_dir`."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, as `save_to_dir`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles it to a file that nothing reads. The study can't be pickled and is left out."""
        return {}


def trial_row(
    trial: optuna.Trial | FrozenTrial,
    end: TrialEnd,
    measures: Mapping[str, Any],
    *,
    started: float | None,
    ended: float | None,
) -> dict[str, Any]:
    """The row of ``trials.jsonl`` for a trained trial. Measures that are missing are None."""
    row = TrialRow(
        number=trial.number,
        state=end.state,
        end=end,
        preset=trial.user_attrs.get("preset"),
        equal_to=None,
        started=started,
        ended=ended,
        **{name: measures.get(name) for name in MEASURES},
    )
    return asdict(row) | {f"params_{name}": value for name, value in trial.params.items()}


def tell(study: optuna.Study, trial: optuna.Trial, row: Mapping[str, Any], mode: Mode) -> None:
    """Tell Optuna the result in a stored row."""
    state = TrialState[row["state"]]
    if state is not TrialState.FAIL:
        trial.set_constraint("diverged", float(row["diverged"]))
        trial.set_constraint("inert", INERT_SHARE - float(row["predicted_share"]))
    study.tell(trial, values_of(row, mode) if state is TrialState.COMPLETE else None, state=state)


def values_of(row: Mapping[str, Any], mode: Mode) -> list[float]:
    """The objective values of a finished trial."""
    return [row["speedup"], row["degradation"]] if mode == "pareto" else [row["objective"]]


def was_interrupted(row: Mapping[str, Any]) -> bool:
    """Whether the trial of this row was interrupted, so that its settings must be tried again."""
    return TrialEnd.of(row) is TrialEnd.INTERRUPTED


def queue_again(study: optuna.Study, number: int) -> bool:
    """Queue a trial's settings again, once. False if they are already queued, or if it has none yet.

    A queued trial has all its settings from the start; a sampled one only those that were drawn before it ended.
    """
    trials = study.get_trials(deepcopy=False)
    again = trials[number]
    settings = {**again.system_attrs.get("fixed_params", {}), **again.params}
    if not settings or any(trial.user_attrs.get(_REPEATS) == number for trial in trials):
        return False
    study.enqueue_trial(settings, user_attrs={**again.user_attrs, _REPEATS: number})
    return True
