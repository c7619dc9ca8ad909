"""The sentence at the top of a study's report. It claims a gain only if the confirmation's interval supports it.

Pure functions of the trials and of ``confirmation.json``. The first case that applies decides: no trial has finished;
the best trial does not predict; the best trial was not confirmed, so nothing is claimed; the confirmation's verdict.
The sentence names what the search optimised: the score, the net speedup, or the front of speedup and degradation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.report.load import Study
from hybrid_ray.report.rescoring import objective_changes
from hybrid_ray.run_result import TrialEnd

__all__ = ["Headline", "conclude", "confirmed_candidate", "counted", "headline", "interval_text"]

Kind = Literal["gain", "no gain", "worse", "too few seeds", "inert", "not confirmed", "nothing finished", "refused"]

MOST_NAMED = 4  # trials on the front that the sentence names at most
MIN_SEEDS = 3  # fewest seeds for an interval (docs/method.md, section 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """The finding in one sentence, and which of the cases it is."""

    kind: Kind
    text: str


def headline(study: Study) -> Headline:
    """The finding of a study, or the finding so far if it has not finished."""
    asked = study.job.search.trials
    ended = counted(study.trials)
    front = study.front if study.job.objective.mode == "pareto" else None
    found = conclude(
        study.trials,
        study.winner,
        study.best,
        study.statistics,
        net=study.job.objective.mode == "net",
        front=front,
        optimizer=study.job.train.optimizer_name,
    )
    if study.rescoring:
        changes = ", ".join(objective_changes(study.rescoring.searched, study.job.objective)) or "nothing changed"
        found = Headline(kind=found.kind, text=f"Rescored ({changes}). {found.text}")
    if study.finished:
        return found
    return Headline(kind=found.kind, text=f"Unfinished ({len(ended)} of {asked} trials so far). {found.text}")


def counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that were trained and ended by themselves.

    Not those interrupted with the driver, whose settings are queued again, nor those that equal an earlier trial.
    """
    ended = trials["state"].isin(["COMPLETE", "PRUNED", "FAIL"]) & (trials["end"] != TrialEnd.INTERRUPTED)
    return trials[ended & trials["equal_to"].isna()]


def conclude(
    trials: pd.DataFrame,
    winner: pd.Series | None,
    best: pd.Series | None,
    statistics: Mapping[str, Any] | None,
    *,
    net: bool = False,
    front: pd.DataFrame | None = None,
    optimizer: str = "adamw",
) -> Headline:
    """Decide which case applies and word it.

    Args:
        trials: as `Study.trials`.
        winner: the finished trial with the highest rank, inert or not; None if no trial finished.
        best: the finished trial with the highest rank among those that predict; None if there is none.
        statistics: the content of ``confirmation.json``, or None.
        net: whether the search objective is the net speedup.
        front: as `Study.front` if the search objective is speedup and degradation, else None.
        optimizer: the job's optimizer. A study runs no other one, so it cannot tell a gain of predicting from a gain
            that a better optimizer would give.
    """
    ended = counted(trials)
    if winner is None:
        return Headline(kind="nothing finished", text=_nothing_finished(ended))
    inert = winner["inert"] == 1 if front is None else bool((front["inert"] == 1).all())
    if inert or best is None:
        text = _inert(winner, best, len(ended), net) if front is None else _inert_front(front, len(ended))
        return Headline(kind="inert", text=text)
    candidates = (statistics or {}).get("candidates", ())
    candidate = confirmed_candidate(statistics, best)
    if candidate is None:
        found = f"the best of {_trials(len(ended))} {_worth(best, net)}" if front is None else _front(front, len(ended))
        return Headline(kind="not confirmed", text=_not_confirmed(found, best, candidates))
    found = f"the best of {_trials(len(ended))} {_brief(best, net)}" if front is None else _front(front, len(ended))
    if int(best["number"]) not in {one["trial"] for one in candidates}:
        found = (
            f"{found}; trial {best['number']:.0f}, which has the highest score of them, was not confirmed"
            if front is not None
            else f"{found} (trial {best['number']:.0f}, not confirmed)"
        )
    return _confirmed(candidate, found, optimizer_title(optimizer))


def _worth(trial: pd.Series, net: bool) -> str:
    """Score and net speedup, the search objective first: ``scored 1.31 with net speedup 0.93 ± 0.03``."""
    if not net:
        return f"scored {trial['score']:.2f}{_stopped_early(trial)} with {_net_text(trial)}"
    if pd.isna(trial["net_speedup"]) and trial["objective"] > 0:
        return f"has a net speedup of at least {trial['objective']:.2f} (score {trial['score']:.2f})"
    return f"has {_net_text(trial)} (score {trial['score']:.2f})"


def _stopped_early(trial: pd.Series) -> str:
    """The score of stopping early (plain training) at the same time."""
    return "" if pd.isna(trial["excess"]) else f" (stopping early {trial['score'] - trial['excess']:.2f})"


def _brief(trial: pd.Series, net: bool) -> str:
    """Only the search objective, because the confirmed net speedup follows in the sentence."""
    return f"{_worth(trial, net)} in the search" if net else f"scored {trial['score']:.2f}{_stopped_early(trial)}"


def _front(front: pd.DataFrame, ended: int) -> str:
    """The trials on the Pareto front; names up to `MOST_NAMED` that predict, those with the highest net speedup."""
    predict = front[front["inert"] != 1]
    shown = front if predict.empty else predict
    named = shown.assign(_net=shown["net_speedup"].fillna(0.0)).nlargest(MOST_NAMED, "_net")
    texts = [
        f"trial {row['number']:.0f} ({row['speedup']:.2f} × at {100 * row['degradation']:+.1f} % loss, "
        f"{_net_text(row)})"
        for _, row in named.sort_values("speedup", ascending=False).iterrows()
    ]
    inert = f", {len(front) - len(predict)} of them inert" if 0 < len(predict) < len(front) else ""
    more = f", and {len(shown) - len(named)} more" if len(shown) > len(named) else ""
    verb = "is" if len(front) == 1 else "are"
    return (
        f"of {_trials(ended)} {len(front)} {verb} on the front of speedup and degradation{inert}: "
        f"{', '.join(texts)}{more}"
    )


def _inert_front(front: pd.DataFrame, ended: int) -> str:
    return f"Predicting did not pay: {_front(front, ended)}; none of them predicts at least 5 % of its steps."


def _not_confirmed(found: str, best: pd.Series, candidates: Sequence[Mapping[str, Any]]) -> str:
    text = f"Not confirmed: {found} on one seed"
    if candidates:
        others = " and ".join(str(one["trial"]) for one in candidates)
        text += f"; trial {others} ran on fresh seeds, trial {best['number']:.0f} did not"
    return (
        f"{text}. The best of many noisy trials looks better than it is, so nothing is claimed until it has run on "
        "fresh seeds."
    )


def _nothing_finished(ended: pd.DataFrame) -> str:
    if ended.empty:
        return "No trial has ended yet, so there is nothing to report."
    counts = {
        "diverged": int((ended["diverged"] == 1).sum()),
        "stopped early": int(((ended["state"] == "PRUNED") & (ended["diverged"] != 1)).sum()),
        "failed": int((ended["state"] == "FAIL").sum()),
    }
    parts = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"No trial finished, so nothing was found: of {_trials(len(ended))}, {parts}."


def _inert(winner: pd.Series, best: pd.Series | None, ended: int, net: bool) -> str:
    highest = (
        f"the highest net speedup of {_trials(ended)}, {winner['objective']:.2f} with score {winner['score']:.2f}"
        if net
        else f"the highest score of {_trials(ended)}, {winner['score']:.2f} with {_net_text(winner)}"
    )
    text = (
        f"Predicting did not pay: {highest}, went to trial {winner['number']:.0f}, which predicts only "
        f"{100 * winner['predicted_share']:.0f} % of its steps"
    )
    if best is None:
        return f"{text}, and no trial that predicts more has finished."
    return f"{text}; the best trial that does predict {_worth(best, net)}."


def confirmed_candidate(statistics: Mapping[str, Any] | None, best: pd.Series | None) -> Mapping[str, Any] | None:
    """The confirmed trial that the headline and the first figures are about; None if the best trial was not confirmed.

    If there are real gains, it is the one with the highest lower end of the interval; otherwise the best trial.
    """
    candidates: Sequence[Mapping[str, Any]] = (statistics or {}).get("candidates", ())
    gains = [candidate for candidate in candidates if candidate["verdict"] == "real gain"]
    if gains:
        return max(gains, key=lambda candidate: float(candidate["net_speedup"]["low"]))
    return next((one for one in candidates if best is not None and one["trial"] == int(best["number"])), None)


def _confirmed(candidate: Mapping[str, Any], found: str, optimizer: str) -> Headline:
    net, trial = candidate["net_speedup"], candidate["trial"]
    if net["mean"] is None or net["n"] < MIN_SEEDS:
        text = (
            f"Nothing can be claimed: {found}, but the net speedup of trial {trial} is known for only {net['n']} fresh "
            f"seeds and an interval needs {MIN_SEEDS}{_because(net)}."
        )
        return Headline(kind="too few seeds", text=text)
    measured = f"net speedup {interval_text(net)}, {net['n']} seeds"
    if candidate["verdict"] == "inert":
        text = f"Predicting did not pay: {found}, but on fresh seeds trial {trial} barely predicts ({measured})."
        return Headline(kind="inert", text=text)
    if candidate["verdict"] == "real gain":
        text = (
            f"A real gain over {optimizer}: on fresh seeds, trial {trial} reaches its loss {net['mean']:.2f} times as "
            f"fast as stopping plain {optimizer} early ({measured}); {found}. A study compares no "
            f"other optimizer and does not tune {optimizer}'s learning rate, which may give the same gain: hybrid-ray "
            "compare tests both."
        )
        return Headline(kind="gain", text=text)
    if candidate["verdict"] == "worse than stopping early":
        text = (
            f"Nothing beat stopping early: {found}, but plain training with fewer steps reaches the loss of trial "
            f"{trial} in {net['mean']:.2f} of its time ({measured})."
        )
        return Headline(kind="worse", text=text)
    if candidate["refusal"]:
        text = (
            f"Nothing can be claimed: {found}, and trial {trial} looks like a gain ({measured}), but "
            f"{candidate['refusal']}."
        )
        return Headline(kind="refused", text=text)
    text = (
        f"Nothing was shown to beat stopping early: {found}, but the difference between trial {trial} and stopping "
        f"early is within the noise ({measured})."
    )
    if net["low"] is not None and net["low"] > 1:
        lower = interval_text(net["advantage"], 3)
        text = (
            f"Nothing was shown to beat stopping early: {found}, and trial {trial} looks faster ({measured}), but its "
            f"loss is not shown to be lower at equal time (stopping early / hybrid {lower})."
        )
    return Headline(kind="no gain", text=text)


def _because(net: Mapping[str, Any]) -> str:
    return f": {net['note']}" if net.get("note") else ""


def _net_text(trial: pd.Series) -> str:
    """The net speedup of a single run with its standard error."""
    net, error = trial["net_speedup"], trial["net_error"]
    if pd.isna(net):
        return "a loss outside the frontier's range (no net speedup)"
    return f"net speedup {net:.2f}" + (f" ± {error:.2f}" if pd.notna(error) else "")


def _trials(number: int) -> str:
    return f"{number} trial" + "s" * (number != 1)


def interval_text(found: Mapping[str, Any], digits: int = 2) -> str:
    """``0.93, 95 % interval 0.90-0.96``; an unknown end of the interval is called open."""
    mean, low, high = found["mean"], found["low"], found["high"]
    if mean is None:
        return "unknown"
    if low is None and high is None:
        return f"{mean:.{digits}f}, 95 % interval open at both ends"
    if low is None:
        return f"{mean:.{digits}f} or less, 95 % interval up to {high:.{digits}f}"
    if high is None:
        return f"{mean:.{digits}f} or more, 95 % interval from {low:.{digits}f}"
    return f"{mean:.{digits}f}, 95 % interval {low:.{digits}f}–{high:.{digits}f}"
