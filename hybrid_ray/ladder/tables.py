"""The tables of a ladder's report, and the sentences that sum it up."""

from collections.abc import Mapping
from typing import Any, get_args

import pandas as pd

from hybrid_ray.config.ladder import ShareOfRun
from hybrid_ray.ladder.results import Ladder, Rung
from hybrid_ray.memory.estimate import size_text
from hybrid_ray.report.headline import confirmed_candidate
from hybrid_ray.report.load import Study
from hybrid_ray.report.tables.cells import NONE, Table, loss_unit, number, percent, ratio, setting, with_error
from hybrid_ray.study.plan import duration

__all__ = [
    "best_value",
    "correlations",
    "costs",
    "from_nothing",
    "next_rung",
    "optima",
    "results",
    "searched",
    "sentence",
]


def sentence(ladder: Ladder) -> str:
    """The headline: the best net speedup of each rung, and for which neighbours an order that transfers was shown."""
    done = [(rung, best) for rung in ladder.rungs if (best := rung.study.best) is not None]
    if not done:
        return "No rung has a finished trial that predicts yet."
    first, last = done[0][0].parameters, done[-1][0].parameters
    nets = ", ".join(with_error(best["net_speedup"], best["net_error"], 2) for _, best in done)
    if len(done) == 1:
        return f"At {first:,} parameters the best net speedup is {nets}; no larger rung has finished trials yet."
    neighbours = ladder.neighbours
    shown = [f"{pair.below} to {pair.above}" for pair in neighbours if pair.correlation.shown]
    order = (
        f"the order of the settings carried over from {', '.join(shown)} ({len(shown)} of {len(neighbours)} steps)"
        if shown
        else "no step of the ladder was shown to keep the order of the settings"
    )
    return f"From {first:,} to {last:,} parameters, the best net speedup per rung is {nets}; {order}."


def results(ladder: Ladder) -> Table:
    """Size, baseline, best trial and what stopping early scores, per rung."""
    rows = []
    for rung in ladder.rungs:
        study, best = rung.study, rung.study.best
        known: Mapping[Any, Any] = {} if best is None else best.to_dict()
        baseline = study.baseline["loss"].iloc[0] if len(study.baseline) else None
        rows.append(
            (
                rung.name,
                f"{rung.parameters:,}",
                f"{study.job.train.steps:,}",
                setting(study.job.train.learning_rate),
                number(baseline, 4),
                number(known.get("loss"), 4),
                with_error(known.get("net_speedup"), known.get("net_error"), 2),
                _confirmed(study),
                number(known.get("speedup"), 2),
                number(known.get("score"), 2),
                number(known.get("excess"), 2),
                percent(known.get("predicted_share"), 0),
            )
        )
    unit = loss_unit(ladder.rungs[0].study.words) if ladder.rungs else "loss"
    return Table(
        title="",
        columns=(
            "rung", "parameters", "steps", "learning rate", "baseline loss", "loss", "net speedup", "confirmed",
            "speedup", "score", "excess", "steps predicted",
        ),
        rows=tuple(rows),
        note=f"The best trial of each rung. Losses: {unit}, val split, one seed. Net speedup: training time that "
        "stopping early needs for this loss / the trial's; above 1 is a gain. ± is the standard error of one run; the "
        "best of several trials is biased upwards, so only a confirmed value (fresh seeds, test split, 95 % interval) "
        "supports a claim. It is the best trial's; where another trial is named, that one was confirmed as a gain. "
        "Excess: score less that of stopping early at equal time.",
    )  # fmt: skip


def optima(ladder: Ladder) -> Table:
    """The best settings of each rung, step counts also as shares of the run, and where they came from."""
    names = list(dict.fromkeys(name for rung in ladder.rungs for name in searched(rung.study)))
    rows = []
    for rung in ladder.rungs:
        best = rung.study.best
        values = [NONE if best is None else best_value(rung, best, name) for name in names]
        rows.append((rung.name, _rate(rung), *values, *_origin(rung, best)))
    return Table(
        title="",
        columns=("rung", "learning rate", *names, "came from", "best carried setting"),
        rows=tuple(rows),
        note="The settings of the best trial. In brackets: the share of the run. ↔: the best rate is the lowest or the "
        "highest of those tried. Best carried setting: its rank among the rung's finished trials that predict.",
    )


def correlations(ladder: Ladder) -> Table:
    """The rank correlation of shared settings, for every two rungs."""
    rows = []
    for pair in ladder.pairs:
        found, order = pair.correlation, pair.order
        interval = NONE if found.low is None else f"{found.low:.2f} to {found.high:.2f}"
        told_apart = NONE if order is None else f"{order.same} of {order.of}"
        shown = "yes" if found.shown else "not shown"
        rows.append(
            (
                f"{pair.below} to {pair.above}", str(found.n), number(found.rho, 2), interval, number(found.p, 3),
                told_apart, shown,
            )
        )  # fmt: skip
    return Table(
        title="",
        columns=(
            "rungs", "shared settings", "rank correlation", "95 % interval", "p", "same order beyond noise",
            "order carries over",
        ),
        rows=tuple(rows),
        note="Spearman's rank correlation of the objective over settings tried on both rungs. Interval: Fisher's z "
        "with the standard error of Bonett and Wright (2000). p: share of all orders that correlate at least as well. "
        "Same order beyond noise: of the pairs of settings that differ by more than 2 standard errors on both rungs. "
        "The settings are the best ones and others near them: over the whole space the correlation may be higher.",
    )  # fmt: skip


def costs(ladder: Ladder) -> Table:
    """What each rung cost, and what a search from nothing on it would have cost more."""
    rows, total, saved = [], 0.0, 0.0
    for rung in ladder.rungs:
        less = ladder.saved(rung)
        total, saved = total + rung.seconds, saved + (less or 0.0)
        rows.append(
            (
                rung.name,
                str(rung.trials),
                str(ladder.rungs[0].trials),
                number(rung.trial_seconds, 1),
                duration(rung.seconds),
                NONE if less is None else duration(less),
                NONE if less is None else percent(less / (rung.seconds + less), 0),
            )
        )
    last = (NONE, duration(total), duration(saved), percent(saved / (total + saved) if total + saved else None, 0))
    rows.append(("whole ladder", str(sum(rung.trials for rung in ladder.rungs)), NONE, *last))
    return Table(
        title="",
        columns=("rung", "trials", "from nothing", "seconds a trial", "all runs", "saved", "saved share"),
        rows=tuple(rows),
        note="Wall time of runs, one run at a time; runs from the cache count as if trained now. Saved: the time of "
        "the trials that a search from nothing, as long as that of the first rung, would have run in addition. "
        "Frontier and tuning are the same in both. Whether that search would have found better settings is measured "
        "only on the rungs of ladder.from_nothing.",
    )


def from_nothing(ladder: Ladder) -> Table | None:
    """The carried search against a search from nothing on the same rung; None if no rung had one."""
    rows = []
    for rung in ladder.rungs:
        other = rung.from_nothing
        if other is None or rung.study.best is None or other.best is None:
            continue
        ours, theirs = rung.study.best, other.best
        errors = [float(one["net_error"]) if pd.notna(one["net_error"]) else None for one in (ours, theirs)]
        known = pd.notna(ours["net_speedup"]) and pd.notna(theirs["net_speedup"]) and None not in errors
        rows.append(
            (
                rung.name,
                str(rung.trials),
                with_error(ours["net_speedup"], ours["net_error"], 3),
                str(len(other.trained)),
                with_error(theirs["net_speedup"], theirs["net_error"], 3),
                with_error(
                    ours["net_speedup"] - theirs["net_speedup"],
                    sum(error**2 for error in errors if error is not None) ** 0.5 if known else None,
                    3,
                ),
                _first_as_good(other, rung.study),
            )
        )
    return Table(
        title="",
        columns=(
            "rung", "trials", "best net speedup", "trials from nothing", "best from nothing", "difference",
            "as good after",
        ),
        rows=tuple(rows),
        note="Both use the same baseline, frontier and learning rate. As good after: the number of trials after which "
        "the search from nothing had reached the carried search's best objective.",
    ) if rows else None  # fmt: skip


def next_rung(ladder: Ladder) -> str:
    """The cost of one more rung, in a sentence."""
    found = ladder.next_rung
    if found is None:
        return "The cost of a further rung is extrapolated once two rungs have finished."
    last = ladder.rungs[-1]
    return (
        f"One more rung of {found.parameters:,.0f} parameters and {found.steps:,.0f} steps, with as many runs as "
        f"{last.name}, would take {duration(found.seconds)} of runs and {size_text(int(found.memory))} of memory a "
        "run. This extrapolates the growth from the last rung but one to the last; for a rung with known settings, "
        "hybrid-ray plan says it."
    )


def searched(study: Study) -> list[str]:
    """The searched settings of a study."""
    return [name.removeprefix("params_") for name in study.trials.columns if name.startswith("params_")]


def best_value(rung: Rung, trial: pd.Series, name: str) -> str:
    """A setting of a trial as text, with its share of the run if it is a step count."""
    value, steps = trial.get(f"params_{name}"), rung.study.job.train.steps
    if value is None or pd.isna(value):
        return NONE
    counts = name.rpartition(".")[2] in get_args(ShareOfRun) or name.endswith("time_constant")
    return f"{setting(value)} ({percent(value / steps, 2)})" if counts else setting(value)


def _rate(rung: Rung) -> str:
    rate = rung.transfer["rate"]
    return setting(rate["learning_rate"]) + (" ↔" if "learning_rate" in rate.get("at_edge", ()) else "")


def _origin(rung: Rung, best: pd.Series | None) -> tuple[str, str]:
    """Where the best settings came from, and the rank of the best carried ones."""
    if best is None:
        return NONE, NONE
    preset = str(best["preset"])
    source = (
        preset if preset in rung.origins else "this rung's search" if pd.isna(best["preset"]) else f"preset {preset}"
    )
    order = rung.study.ranked
    places = [place for place, name in enumerate(order["preset"], 1) if name in rung.origins]
    return source, f"{places[0]} of {len(order)}" if places else NONE


def _confirmed(study: Study) -> str:
    """The confirmed net speedup that the rung's own headline gives; of which trial, if not of the best one."""
    best, found = study.best, confirmed_candidate(study.statistics, study.best)
    if found is None:
        return NONE
    same = best is not None and found["trial"] == int(best["number"])
    return ratio(found["net_speedup"], 2) + ("" if same else f", trial {found['trial']}")


def _first_as_good(other: Study, ours: Study) -> str:
    target = ours.worth[ours.trials["number"] == ours.best["number"]].iloc[0] if ours.best is not None else None
    done = other.finished_trials.assign(worth=other.worth)
    usable = done[done["inert"] != 1].reset_index(drop=True)
    reached = usable[usable["worth"] >= target]
    return f"{reached.index[0] + 1} trials" if len(reached) else f"not in {len(usable)} trials"
