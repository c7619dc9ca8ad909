"""The plots of a study, each a function from a `Study` to a matplotlib figure.

`PLOTS` lists them in reading order; `shown` selects those that fit the objective. For an unfinished study a plot shows
the results so far, or one line that says what is missing.
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
    done = study.trained[study.trained["state"] == "COMPLETE"]
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
    """The search objective over each searched setting, at most three."""
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
    """The search objective of every trial, in order, and the best value so far."""
    trials = _scored(study)
    if trials.empty:
        return message("No trial has a score yet.")
    figure, (axes,) = canvas(3.0)
    _draw_scores(axes, trials, "number")
    best = trials["worth"].where(trials["number"].isin(study.ranked["number"])).cummax().ffill()
    axes.step(trials["number"], best, where="post", color=INK, lw=1.4, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(_searched(study))
    legend(figure, axes, columns=5)
    return figure


def _searched(study: Study) -> str:
    return "net speedup (×)" if study.job.objective.mode == "net" else "score"


def _scored(study: Study) -> pd.DataFrame:
    """Trials with their objective as ``worth``, clipped to just below the lowest finished trial."""
    trials = study.trained.assign(worth=study.worth).dropna(subset=["worth"])
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
"""The section of the report that a plot belongs to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One plot of the report: how to draw it, and the caption that tells a reader what it shows."""

    name: str
    section: Section
    title: str
    caption: str
    draw: Callable[[Study], Figure]
    modes: tuple[str, ...] = ("score", "net", "pareto")  # objective modes for which it is shown


def shown(study: Study) -> tuple[Plot, ...]:
    """The plots for a study's objective mode, in reading order."""
    return tuple(plot for plot in PLOTS if study.job.objective.mode in plot.modes)


PLOTS = (
    Plot(
        name="frontier",
        section="frontier",
        title="Trials over the frontier",
        caption=(
            "Each point is a trial; lower left is better. The line (the frontier) is plain training with fewer steps "
            "and a fully decayed learning rate. A trial above the line takes longer than stopping early at the same "
            "loss; only a trial below it is a gain. The dotted line joins the best trial to the frontier at equal "
            "loss: the ratio of the two times is its net speedup. Green marks are the confirmed settings, drawn as far "
            "from the line as the fresh seeds say, with 95 % intervals."
        ),
        draw=trials_over_frontier,
    ),
    Plot(
        name="confirmation",
        section="confirmation",
        title="Confirmation on fresh seeds",
        caption=(
            "Small marks are seeds, large marks their means. Left: loss relative to plain training with as many real "
            "steps; further left is better, 0 is equal. The placebo skips the hybrid's predicted steps and does "
            "nothing in them. Right: net speedup; it is a real gain only if the whole interval lies above 1."
        ),
        draw=confirmation,
    ),
    Plot(
        name="score_and_net",
        section="speedups",
        title="Score and net speedup",
        caption=(
            "Higher is better on both axes. Stopping early has a net speedup of 1: a trial below that line is no gain, "
            "however high its score."
        ),
        draw=score_and_net,
    ),
    Plot(
        name="front",
        section="speedups",
        title="Pareto front of speedup and degradation",
        caption=(
            "Lower right is better. Ringed trials are on the front: no other trial is as good in both and better in "
            "one. Being on the front is no gain over stopping early, which also trades loss for time; the plot of "
            "score and net speedup shows the gain."
        ),
        draw=speedup_and_degradation,
        modes=("pareto",),
    ),
    Plot(
        name="loss_curves",
        section="search",
        title="Loss curves",
        caption=(
            "The baseline and the three best trials; lower is better. Left: at equal nominal steps. Right: at equal "
            "training time, of which a predicted step takes very little."
        ),
        draw=loss_curves,
    ),
    Plot(
        name="knobs",
        section="search",
        title="Objective by setting",
        caption=(
            "The search objective (score or net speedup; higher is better) over each searched setting. For a trial "
            "that was stopped early it is the value projected at that point. Values far below every finished trial "
            "are drawn at the lower edge."
        ),
        draw=knobs,
    ),
    Plot(
        name="history",
        section="search",
        title="Objective over the search",
        caption="Trials in the order of the search; higher is better. Best so far counts finished trials that predict.",
        draw=history,
    ),
    Plot(
        name="phase_shares",
        section="runs",
        title="Steps by phase",
        caption="Steps of the phase predict compute no gradient; all other steps do.",
        draw=phase_shares,
    ),
    Plot(
        name="signals",
        section="runs",
        title="Confidence and predictions in the best trial",
        caption=(
            "Confidence is the probability that at the end of the coming cycle (jump, then its real steps) the loss is "
            "within payback_tolerance of what the trend of real steps alone would give. With gate: confidence a "
            "prediction starts only if it reaches the threshold, a small random share of the decisions aside; with the "
            "other gates no decision needs it, and none is computed. Marks at the lower edge are predicted steps."
        ),
        draw=signals,
    ),
    Plot(
        name="step_time",
        section="runs",
        title="Time per step",
        caption="Left: a step of each phase in the best trial. Right: the parts of a real step, compared with the "
        "baseline.",
        draw=step_time,
    ),
)
