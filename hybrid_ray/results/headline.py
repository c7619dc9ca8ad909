"""The one sentence a report leads with. It claims a gain only where the confirmation's interval says so.

Pure functions of the trials and of ``confirmation.json``. In order of precedence: nothing to say yet; the highest score
went to a trial that does not predict; the confirmation's verdict; and without a confirmation, no claim at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from hybrid_ray.results.load import Study

__all__ = ["Headline", "conclude", "counted", "headline", "interval_text"]

Kind = Literal["gain", "no gain", "worse", "too few seeds", "inert", "not confirmed", "nothing finished", "refused"]

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
    found = conclude(study.trials, study.winner, study.best, study.statistics)
    if study.finished:
        return found
    return Headline(kind=found.kind, text=f"Unfinished ({len(ended)} of {asked} trials so far). {found.text}")


def counted(trials: pd.DataFrame) -> pd.DataFrame:
    """Trials that came to an end of their own: not those cut off with the driver, whose settings are queued again."""
    interrupted = trials["error"].astype("string").str.startswith("interrupted").fillna(False)
    return trials[trials["state"].isin(["COMPLETE", "PRUNED", "FAIL"]) & ~interrupted]


def conclude(
    trials: pd.DataFrame, winner: pd.Series | None, best: pd.Series | None, statistics: Mapping[str, Any] | None
) -> Headline:
    """The finding.

    Args:
        trials: as `Study.trials`.
        winner: the finished trial ranked highest, inert or not.
        best: the same among trials that do predict.
        statistics: the content of ``confirmation.json``, or None.
    """
    ended = counted(trials)
    if winner is None:
        return Headline(kind="nothing finished", text=_nothing_finished(ended))
    if winner["inert"] == 1 or best is None:
        return Headline(kind="inert", text=_inert(winner, best, len(ended)))
    scored = f"the best of {_trials(len(ended))} scored {best['score']:.2f}"
    candidate = _candidate((statistics or {}).get("candidates", ()), int(best["number"]))
    if candidate is None:
        text = (
            f"Not confirmed: {scored} with {_net_text(best['net_speedup'])} on one seed, and the best of many noisy "
            "trials is biased, so nothing is claimed before it is run again on fresh seeds."
        )
        return Headline(kind="not confirmed", text=text)
    return _confirmed(candidate, scored)


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


def _inert(winner: pd.Series, best: pd.Series | None, ended: int) -> str:
    text = (
        f"Predicting did not pay: the highest score of {_trials(ended)}, {winner['score']:.2f} with "
        f"{_net_text(winner['net_speedup'])}, went to trial {winner['number']:.0f}, which predicts only "
        f"{100 * winner['predicted_share']:.0f} % of its steps"
    )
    if best is None:
        return f"{text}, and no trial that predicts more came to its end."
    return f"{text}; the best trial that does predict scored {best['score']:.2f} with {_net_text(best['net_speedup'])}."


def _candidate(candidates: Sequence[Mapping[str, Any]], best: int) -> Mapping[str, Any] | None:
    """The one to speak of: a real gain where there is one (the largest that is certain), else the best trial."""
    gains = [candidate for candidate in candidates if candidate["verdict"] == "real gain"]
    if gains:
        return max(gains, key=lambda candidate: float(candidate["net_speedup"]["low"]))
    return next((candidate for candidate in candidates if candidate["trial"] == best), next(iter(candidates), None))


def _confirmed(candidate: Mapping[str, Any], scored: str) -> Headline:
    net, trial = candidate["net_speedup"], candidate["trial"]
    if net["mean"] is None or net["n"] < MIN_SEEDS:
        text = (
            f"Nothing can be claimed: {scored}, but the net speedup of trial {trial} is known for {net['n']} fresh "
            f"seeds and an interval needs {MIN_SEEDS}{_because(net)}."
        )
        return Headline(kind="too few seeds", text=text)
    measured = f"net speedup {interval_text(net)}, {net['n']} seeds"
    if candidate["verdict"] == "inert":
        text = f"Predicting did not pay: {scored}, but on fresh seeds trial {trial} hardly predicts ({measured})."
        return Headline(kind="inert", text=text)
    if candidate["verdict"] == "real gain":
        text = (
            f"A real gain: on fresh seeds, trial {trial} reaches its loss {net['mean']:.2f} times as fast as plain "
            f"training that just stops earlier ({measured}); {scored}."
        )
        return Headline(kind="gain", text=text)
    if candidate["verdict"] == "worse than stopping early":
        text = (
            f"Nothing beat stopping early: {scored}, but plain training that just stops earlier reaches the same loss "
            f"in {net['mean']:.2f} of its time ({measured})."
        )
        return Headline(kind="worse", text=text)
    if candidate["refusal"]:
        text = (
            f"Nothing can be claimed: {scored}, and trial {trial} looks like a gain ({measured}), but "
            f"{candidate['refusal']}."
        )
        return Headline(kind="refused", text=text)
    text = f"Nothing was shown to beat stopping early: {scored}, but its gain over it is within the noise ({measured})."
    return Headline(kind="no gain", text=text)


def _because(net: Mapping[str, Any]) -> str:
    return f": {net['note']}" if net.get("note") else ""


def _net_text(net: float) -> str:
    return f"net speedup {net:.2f}" if pd.notna(net) else "a loss off the frontier (no net speedup)"


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
