"""The pictures of a study, each a function from a `Study` to a matplotlib figure. `PLOTS` has them in reading order;
`shown` those that suit what was searched.

An unfinished study gives the same pictures with what there is, or one line that says what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybrid_ray.report.load import Study
from hybrid_ray.report.plots.frontier import confirmation, score_and_net, trials_over_frontier
from hybrid_ray.report.plots.pareto_front import speedup_and_degradation
from hybrid_ray.report.plots.runs import phase_shares, shade_outside, signals, step_time
from hybrid_ray.report.plots.style import (
    BLUE,
    GREEN,
    INK,
    PURPLE,
    STATES,
    TIME,
    canvas,
    legend,
    loss_label,
    message,
    styled,
)

__all__ = [
    "PLOTS", "Plot", "confirmation", "history", "knobs", "loss_curves", "phase_shares", "score_and_net", "shown",
    "signals", "speedup_and_degradation", "step_time", "trials_over_frontier",
]  # fmt: skip


@styled
def loss_curves(study: Study) -> Figure:
    """Held-out loss of the baseline and of the best trials, over nominal steps and over training time."""
    done = study.trials[study.trials["state"] == "COMPLETE"]
    done = done.loc[study.worth[done.index].sort_values(ascending=False).index].head(3)
    curves = [("baseline", INK, study.curve("baseline"))]
    for number, colour in zip(done["number"], (BLUE, GREEN, PURPLE), strict=False):
        curves.append((f"trial {number}", colour, study.curve(int(number))))
    curves = [(label, colour, curve) for label, colour, curve in curves if not curve.empty]
    if not curves:
        return message("No run with a loss curve has ended yet.")
    figure, panels = canvas(3.4, 2, sharey=True)
    for axes, column, label in zip(panels, ("step", "time"), ("nominal steps", TIME), strict=True):
        for name, colour, curve in curves:
            axes.plot(curve[column], curve["loss"], ".-", color=colour, label=name, ms=5)
        axes.set_xlabel(label)
    shade_outside(panels[0], study, study.job.train.steps)
    panels[0].set_ylabel(f"{loss_label(study.words)}, val split")
    legend(figure, panels[0])
    return figure


@styled
def knobs(study: Study) -> Figure:
    """What was searched over each of the knobs (the first three)."""
    names = [name for name in study.trials.columns if name.startswith("params_")][:3]
    trials = _scored(study)
    if not names or trials.empty:
        return message("No trial has a score yet.")
    figure, panels = canvas(3.0, len(names), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        _draw_scores(axes, trials, name)
        axes.set_xlabel(name.removeprefix("params_").replace("_", " "))
    panels[0].set_ylabel(_searched(study))
    legend(figure, panels[0])
    return figure


@styled
def history(study: Study) -> Figure:
    """The search as it went: every trial in order, and the best one so far."""
    trials = _scored(study)
    if trials.empty:
        return message("No trial has a score yet.")
    figure, (axes,) = canvas(3.0)
    _draw_scores(axes, trials, "number")
    usable = (trials["state"] == "COMPLETE") & (trials["diverged"] != 1) & (trials["inert"] != 1)
    best = trials["worth"].where(usable).cummax().ffill()
    axes.step(trials["number"], best, where="post", color=INK, lw=1.4, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(_searched(study))
    legend(figure, axes, columns=5)
    return figure


def _searched(study: Study) -> str:
    return "net speedup (×)" if study.job.objective.mode == "net" else "score"


def _scored(study: Study) -> pd.DataFrame:
    """Trials with what was searched as ``worth``. One far below every finished trial is drawn at the lower edge."""
    trials = study.trials.assign(worth=study.worth).dropna(subset=["worth"])
    done = trials.loc[trials["state"] == "COMPLETE", "worth"]
    if done.empty:
        return trials
    floor = float(done.min()) - 0.1 * max(0.1, float(done.max() - done.min()))
    return trials.assign(worth=trials["worth"].clip(lower=floor))


def _draw_scores(axes: Axes, trials: pd.DataFrame, column: str) -> None:
    for state, (label, colour, marker) in STATES.items():
        rows = trials[trials["state"] == state]
        if not rows.empty:
            axes.plot(rows[column], rows["worth"], marker, color=colour, label=label, ms=6, alpha=0.8)


Section = Literal["frontier", "confirmation", "speedups", "search", "runs"]
"""Of a report: where a picture stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One picture of the report: how it is drawn and what a reader should see in it."""

    name: str
    section: Section
    title: str
    caption: str
    draw: Callable[[Study], Figure]
    modes: tuple[str, ...] = ("score", "net", "pareto")  # of the objective, in which it is shown


def shown(study: Study) -> tuple[Plot, ...]:
    """The pictures for what a study searched, in reading order."""
    return tuple(plot for plot in PLOTS if study.job.objective.mode in plot.modes)


PLOTS = (
    Plot(
        name="frontier",
        section="frontier",
        title="Trials over the frontier",
        caption=(
            "The line is what real steps alone reach when training is simply shorter, its learning rate fully decayed. "
            "A trial above it costs more time than stopping earlier with the same loss; only one below it is a gain. "
            "The dotted line is the way from the best trial to the frontier: its net speedup."
        ),
        draw=trials_over_frontier,
    ),
    Plot(
        name="confirmation",
        section="confirmation",
        title="Confirmation on fresh seeds",
        caption=(
            "Small marks are seeds, large ones their means. Left: further left is better, and 0 is as good as stopping "
            "earlier with as many real steps; the placebo skips the hybrid's steps and does nothing in them. Right: "
            "a gain is real where the whole interval lies above 1."
        ),
        draw=confirmation,
    ),
    Plot(
        name="score_and_net",
        section="speedups",
        title="Score beside net speedup",
        caption="A high score below the line is what stopping earlier gives as well.",
        draw=score_and_net,
    ),
    Plot(
        name="front",
        section="speedups",
        title="Speedup and degradation: the front",
        caption=(
            "Both were searched. Ringed trials are on the front: no other is as good in both and better in one. Being "
            "on it is no gain over stopping earlier, which trades loss for time too: that is the picture above."
        ),
        draw=speedup_and_degradation,
        modes=("pareto",),
    ),
    Plot(
        name="loss_curves",
        section="search",
        title="Loss curves",
        caption="The best three trials by what was searched. The same nominal steps cost a hybrid run less time.",
        draw=loss_curves,
    ),
    Plot(
        name="knobs",
        section="search",
        title="What was searched, over the knobs",
        caption=(
            "The score or, where that is searched, the net speedup; of a trial stopped early the one it was heading "
            "for. What is far below every finished trial is drawn at the lower edge."
        ),
        draw=knobs,
    ),
    Plot(
        name="history",
        section="search",
        title="The search as it went",
        caption="Best so far counts finished trials that do predict.",
        draw=history,
    ),
    Plot(
        name="phase_shares",
        section="runs",
        title="Steps by phase",
        caption="Predicted steps compute no gradient; all others do.",
        draw=phase_shares,
    ),
    Plot(
        name="signals",
        section="runs",
        title="Confidence in the best trial",
        caption=(
            "Predicting begins only where confidence reaches the threshold. Marks at the lower edge are predicted "
            "steps."
        ),
        draw=signals,
    ),
    Plot(
        name="step_time",
        section="runs",
        title="Where the time goes",
        caption="Left: a step of each phase in the best trial. Right: the parts of a real step, beside the baseline's.",
        draw=step_time,
    ),
)
