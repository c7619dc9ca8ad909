"""The one sentence a report leads with. It claims a gain only where the confirmation's interval says so.

Pure functions of the trials and of ``confirmation.json``. In order of precedence: nothing to say yet; the best trial
does not predict; the confirmation's verdict; and without a confirmation, no claim at all. It speaks of what was
searched: the score, the net speedup, or the front of speedup and degradation.
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

MOST_NAMED = 4  # trials of a front that one sentence names
MIN_SEEDS = 3  # an interval needs as many (docs/method.md, section 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """What was found, in one sentence, and which of the cases it is."""

    kind: Kind
    text: str


def headline(study: Study) -> Headline:
    """What a study found, or what it has found so far."""
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
        optimizer=study.job.train.optimizer,
    )
    if study.rescoring:
        changes = ", ".join(objective_changes(study.rescoring.searched, study.job.objective)) or "nothing changed"
        found = Headline(kind=found.kind, text=f"Scored anew ({changes}). {found.text}")
    if study.finished:
        return found
    return Headline(kind=found.kind, text=f"Unfinished ({len(ended)} of {asked} trials so far). {found.text}")


def counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that came to an end of their own: not those cut off with the driver, whose settings are queued again."""
    return trials[trials["state"].isin(["COMPLETE", "PRUNED", "FAIL"]) & (trials["end"] != TrialEnd.INTERRUPTED)]


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
    """The finding.

    Args:
        trials: as `Study.trials`.
        winner: the finished trial ranked highest, inert or not.
        best: the same among trials that do predict.
        statistics: the content of ``confirmation.json``, or None.
        net: net speedups were searched.
        front: as `Study.front`, where speedup and degradation were searched; else None.
        optimizer: the job's. A study runs no other, so it can't tell whether predicting pays, or the optimizer.
    """
    ended = counted(trials)
    if winner is None:
        return Headline(kind="nothing finished", text=_nothing_finished(ended))
    inert = winner["inert"] == 1 if front is None else bool((front["inert"] == 1).all())
    if inert or best is None:
        won = _inert(winner, best, len(ended), net) if front is None else _inert_front(front, len(ended))
        return Headline(kind="inert", text=won)
    candidates = (statistics or {}).get("candidates", ())
    candidate = confirmed_candidate(statistics, best)
    if candidate is None:
        found = f"the best of {_trials(len(ended))} {_worth(best, net)}" if front is None else _front(front, len(ended))
        return Headline(kind="not confirmed", text=_not_confirmed(found, best, candidates))
    found = f"the best of {_trials(len(ended))} {_brief(best, net)}" if front is None else _front(front, len(ended))
    if int(best["number"]) not in {one["trial"] for one in candidates}:
        found = (
            f"{found}, trial {best['number']:.0f} with the highest score of them not confirmed"
            if front is not None
            else f"{found} (trial {best['number']:.0f}, not confirmed)"
        )
    return _confirmed(candidate, found, optimizer_title(optimizer))


def _worth(trial: pd.Series, net: bool) -> str:
    """Score and net speedup, what was searched first: ``scored 1.31 with net speedup 0.93 ± 0.03``."""
    if not net:
        return f"scored {trial['score']:.2f}{_stopped_early(trial)} with {_net_text(trial)}"
    if pd.isna(trial["net_speedup"]) and trial["objective"] > 0:
        return f"has a net speedup of at least {trial['objective']:.2f} (score {trial['score']:.2f})"
    return f"has {_net_text(trial)} (score {trial['score']:.2f})"


def _stopped_early(trial: pd.Series) -> str:
    """What plain training stopped at the same time scores."""
    return "" if pd.isna(trial["excess"]) else f" (stopping early {trial['score'] - trial['excess']:.2f})"


def _brief(trial: pd.Series, net: bool) -> str:
    """What was searched alone: the net speedup that was confirmed follows."""
    return f"{_worth(trial, net)} in the search" if net else f"scored {trial['score']:.2f}{_stopped_early(trial)}"


def _front(front: pd.DataFrame, ended: int) -> str:
    """The trials that none beats in both; those that predict by name, the ones with the highest net speedup."""
    predict = front[front["inert"] != 1]
    told = front if predict.empty else predict
    named = told.assign(_net=told["net_speedup"].fillna(0.0)).nlargest(MOST_NAMED, "_net")
    texts = [
        f"trial {row['number']:.0f} ({row['speedup']:.2f} × at {100 * row['degradation']:+.1f} % loss, "
        f"{_net_text(row)})"
        for _, row in named.sort_values("speedup", ascending=False).iterrows()
    ]
    inert = f", {len(front) - len(predict)} of them inert" if 0 < len(predict) < len(front) else ""
    more = f", and {len(told) - len(named)} more" if len(told) > len(named) else ""
    verb = "is" if len(front) == 1 else "are"
    return (
        f"of {_trials(ended)} {len(front)} {verb} on the front of speedup and degradation{inert}: "
        f"{', '.join(texts)}{more}"
    )


def _inert_front(front: pd.DataFrame, ended: int) -> str:
    return f"Predicting did not pay: {_front(front, ended)}; none of them predicts 5 % of its steps."


def _not_confirmed(found: str, best: pd.Series, candidates: Sequence[Mapping[str, Any]]) -> str:
    text = f"Not confirmed: {found} on one seed"
    if candidates:
        others = " and ".join(str(one["trial"]) for one in candidates)
        text += f"; on fresh seeds trial {others} ran, not trial {best['number']:.0f}"
    return (
        f"{text}, and the best of many noisy trials is biased, so nothing is claimed before it is run again on fresh "
        "seeds."
    )


def _nothing_finished(ended: pd.DataFrame) -> str:
    if ended.empty:
        return "No trial has ended yet: there is nothing to report."
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
        return f"{text}, and no trial that predicts more came to its end."
    return f"{text}; the best trial that does predict {_worth(best, net)}."


def confirmed_candidate(statistics: Mapping[str, Any] | None, best: pd.Series | None) -> Mapping[str, Any] | None:
    """The confirmed trial that headline and first figures speak of: a real gain where there is one (the largest that is
    certain), else the best trial. None: the best was not run again.
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
            f"Nothing can be claimed: {found}, but the net speedup of trial {trial} is known for {net['n']} fresh "
            f"seeds and an interval needs {MIN_SEEDS}{_because(net)}."
        )
        return Headline(kind="too few seeds", text=text)
    measured = f"net speedup {interval_text(net)}, {net['n']} seeds"
    if candidate["verdict"] == "inert":
        text = f"Predicting did not pay: {found}, but on fresh seeds trial {trial} hardly predicts ({measured})."
        return Headline(kind="inert", text=text)
    if candidate["verdict"] == "real gain":
        text = (
            f"A real gain over {optimizer}: on fresh seeds, trial {trial} reaches its loss {net['mean']:.2f} times as "
            f"fast as plain {optimizer} that just stops earlier ({measured}); {found}. No peer was compared: whether "
            "predicting pays, or the optimizer, is open (hybrid-ray compare)."
        )
        return Headline(kind="gain", text=text)
    if candidate["verdict"] == "worse than stopping early":
        text = (
            f"Nothing beat stopping early: {found}, but plain training that just stops earlier reaches the loss of "
            f"trial {trial} in {net['mean']:.2f} of its time ({measured})."
        )
        return Headline(kind="worse", text=text)
    if candidate["refusal"]:
        text = (
            f"Nothing can be claimed: {found}, and trial {trial} looks like a gain ({measured}), but "
            f"{candidate['refusal']}."
        )
        return Headline(kind="refused", text=text)
    text = (
        f"Nothing was shown to beat stopping early: {found}, but the gain of trial {trial} over it is within the noise "
        f"({measured})."
    )
    return Headline(kind="no gain", text=text)


def _because(net: Mapping[str, Any]) -> str:
    return f": {net['note']}" if net.get("note") else ""


def _net_text(trial: pd.Series) -> str:
    """With the standard error of a single run."""
    net, error = trial["net_speedup"], trial["net_error"]
    if pd.isna(net):
        return "a loss off the frontier (no net speedup)"
    return f"net speedup {net:.2f}" + (f" ± {error:.2f}" if pd.notna(error) else "")


def _trials(number: int) -> str:
    return f"{number} trial" + "s" * (number != 1)


def interval_text(found: Mapping[str, Any], digits: int = 2) -> str:
    """``0.93, 95 % interval 0.90-0.96``; an end that is not known is said to be open."""
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
