"""Ray Tune's side of an Optuna study: ``suggest`` asks, ``on_trial_complete`` tells, and there is one writer.

Ray's own OptunaSearch tells a stopped trial as COMPLETE with its partial value and leaves a NaN trial RUNNING for
ever. Here every trial that was asked is told, and as what it was:

    finished                 COMPLETE   its value(s)
    stopped by the scheduler PRUNED     its last intermediate value
    diverged                 PRUNED     with the violated constraint ``diverged``, so that TPE keeps away
    exception, out of memory FAIL
    driver asked to stop     FAIL       with ``interrupted``; its settings are queued again

A trial's row is kept in the store *before* Optuna is told, so that a kill between the two loses nothing (study.py).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from hybrid_ray.tune.measure import MEASURES

__all__ = ["INTERRUPTED", "Listener", "OptunaSearcher", "interrupt", "tell", "values_of"]

INTERRUPTED = "interrupted"
"""User attribute of an Optuna trial that was cut off with the driver: it does not count as one of the asked trials."""

Mode = Literal["score", "net", "pareto"]


class Listener(Protocol):
    """Hears what becomes of the trials, in the driver's process."""

    def started(self, number: int, params: Mapping[str, Any], preset: str | None) -> None: ...

    def reported(self, number: int, result: Mapping[str, Any]) -> None: ...

    def ended(self, row: Mapping[str, Any]) -> None:
        """Keeps the row. Called before Optuna is told."""
        ...


@dataclass(slots=True)
class _Running:
    trial: optuna.Trial
    started: float
    reported: set[int] = field(default_factory=set)


class OptunaSearcher(Searcher):
    """Asks a study for settings and tells it what became of them.

    Args:
        study: in the study directory; this process is its only writer.
        ask: the search space: settings from an Optuna trial.
        mode: ``pareto`` tells (speedup, degradation), the others the one ``objective``.
        listener: hears of every trial; ``ended`` keeps its row.
        may_start: whether another trial may be asked (budgets, a stop that was asked for).
        reason: why a trial raised, by number.
        stop_after_failures: so many failures in a row end the search.
    """

    def __init__(
        self,
        study: optuna.Study,
        ask: Callable[[optuna.Trial], Mapping[str, Any]],
        *,
        mode: Mode,
        listener: Listener,
        may_start: Callable[[], bool] = lambda: True,
        reason: Callable[[int], str] = lambda number: "the trial's process died",
        stop_after_failures: int = 5,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self._study, self._ask, self._objective = study, ask, mode
        self._listener, self._may_start, self._reason = listener, may_start, reason
        self._stop_after_failures = stop_after_failures
        self._failures_in_a_row = 0
        self.gave_up = (
            False  # so many trials failed in a row that no more are asked; one that finishes later is too late
        )
        self._running: dict[str, _Running] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Metric and mode are our own; whatever Tune was given changes nothing."""
        return True

    def suggest(self, trial_id: str) -> Any:  # a dict or FINISHED, though Ray's annotation knows only the first
        """Settings for a new trial, or FINISHED when none may start any more."""
        if self.gave_up or not self._may_start():
            return Searcher.FINISHED
        trial = self._study.ask()
        try:
            params = dict(self._ask(trial))
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        self._running[trial_id] = _Running(trial=trial, started=time.time())
        self._listener.started(trial.number, params, trial.user_attrs.get("preset"))
        return {"number": trial.number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """An evaluation on the way: an intermediate value (several objectives have none in Optuna)."""
        running = self._running[trial_id]
        if self._objective != "pareto" and result["step"] > 0 and result["step"] not in running.reported:
            running.reported.add(result["step"])
            running.trial.report(float(result["objective"]), int(result["step"]))
        self._listener.reported(running.trial.number, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell what became of a trial. Tune passes no result with an error; told twice, the first time counts."""
        if trial_id not in self._running:
            return
        running = self._running[trial_id]
        number = running.trial.number
        if error or not result or "objective" not in result or result.get("failed"):
            said = (result or {}).get("error") or self._reason(number)
            self._end(trial_id, TrialState.FAIL, {**(result or {}), "status": "failed", "error": said})
            self._failures_in_a_row += 1
            self.gave_up |= self._failures_in_a_row >= self._stop_after_failures
            return
        self._failures_in_a_row = 0
        self.on_trial_result(trial_id, result)
        finished = bool(result["finished"]) and not result["diverged"]
        self._end(trial_id, TrialState.COMPLETE if finished else TrialState.PRUNED, result)

    def close(self, why: str) -> None:
        """Tell every trial that is still open as interrupted. None is RUNNING afterwards."""
        for trial_id, running in list(self._running.items()):
            said = f"{INTERRUPTED}: {why}; its settings are queued again"
            self._listener.ended(self._row(running, TrialState.FAIL, {"status": "failed", "error": said}))
            del self._running[trial_id]
            interrupt(self._study, running.trial)

    def _end(self, trial_id: str, state: TrialState, result: Mapping[str, Any]) -> None:
        running = self._running[trial_id]
        row = self._row(running, state, result)
        self._listener.ended(row)
        del self._running[trial_id]
        tell(self._study, running.trial, row, self._objective)

    def _row(self, running: _Running, state: TrialState, result: Mapping[str, Any]) -> dict[str, Any]:
        """The row of ``trials.jsonl``."""
        trial = running.trial
        return {
            "number": trial.number,
            "state": state.name,
            **{f"params_{name}": value for name, value in trial.params.items()},
            **{name: result.get(name) for name in MEASURES},
            "objective": result.get("objective"),
            "preset": trial.user_attrs.get("preset"),
            "started": running.started,
            "ended": time.time(),
        }

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the journal in the study directory is the only store, and resuming starts from it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, as `save_to_dir`."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save_to_dir`."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings to a file that nothing reads; a study and its writer can't go there."""
        return {}


def tell(study: optuna.Study, trial: optuna.Trial, row: Mapping[str, Any], mode: Mode) -> None:
    """Tell Optuna what a kept row says."""
    state = TrialState[row["state"]]
    if state is not TrialState.FAIL:
        trial.set_constraint("diverged", float(row["diverged"]))
    study.tell(trial, values_of(row, mode) if state is TrialState.COMPLETE else None, state=state)


def values_of(row: Mapping[str, Any], mode: Mode) -> list[float]:
    """What a finished trial is judged by."""
    return [row["speedup"], row["degradation"]] if mode == "pareto" else [row["objective"]]


def interrupt(study: optuna.Study, trial: optuna.Trial) -> None:
    """Queue a trial's settings again, then tell it as failed. A kill in between queues them twice, which does no
    harm.
    """
    if trial.params:
        study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)
    trial.set_user_attr(INTERRUPTED, True)
    study.tell(trial, state=TrialState.FAIL)
