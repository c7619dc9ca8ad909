"""The plot of mode ``pareto``: speedup and degradation of every finished trial, and their Pareto front."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybrid_ray.report.load import Study
from hybrid_ray.report.plots.style import BLUE, INK, MUTED, PAPER, WASH, canvas, legend, message, styled

__all__ = ["speedup_and_degradation"]


@styled
def speedup_and_degradation(study: Study) -> Figure:
    """Degradation over speedup of the finished trials; those on the front are joined and numbered."""
    done = study.finished_trials
    if done.empty:
        return message("No trial has finished yet.")
    figure, (axes,) = canvas(3.8)
    for inert, label, fill in ((0, "trial", BLUE), (1, "inert (predicts under 5 % of steps)", "none")):
        rows = done[done["inert"] == inert]
        if not rows.empty:
            percent = 100 * rows["degradation"]
            axes.plot(rows["speedup"], percent, "o", color=BLUE, mfc=fill, ms=6.5, label=label, alpha=0.9)
    _draw_front(axes, study.front)
    best = study.best
    if best is not None:
        percent = 100 * best["degradation"]
        axes.plot(best["speedup"], percent, "*", color=BLUE, ms=16, mec=PAPER, label="best trial by score", zorder=5)
    tolerance = 100 * study.job.objective.tolerance
    low, high = axes.get_ylim()
    low = min(low, 0.0)
    axes.set_ylim(low, max(high, 1.1 * tolerance))  # the line at the tolerance is always visible
    axes.axhspan(low, tolerance, color=WASH, lw=0, zorder=0)
    axes.annotate(
        "within the tolerance: no penalty", (0.99, tolerance), (0, -4), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="top", size=9, color=MUTED, style="italic",
    )  # fmt: skip
    axes.set_xlabel("speedup over the baseline (×)")
    axes.set_ylabel("loss above the baseline's (%)")
    legend(figure, axes)
    return figure


def _draw_front(axes: Axes, front: pd.DataFrame) -> None:
    """Draw the front as a step line: at a speedup between two trials, the best known loss is that of the faster one."""
    line = front.sort_values("speedup")
    axes.step(line["speedup"], 100 * line["degradation"], where="pre", color=INK, lw=1.4, zorder=2)
    axes.plot(
        line["speedup"], 100 * line["degradation"], "o", color=INK, mfc="none", ms=12, mew=1.4, label="on the front"
    )
    for _, row in line.iterrows():
        axes.annotate(
            f"{row['number']:.0f}", (row["speedup"], 100 * row["degradation"]), (9, -11), textcoords="offset points",
            size=9, color=INK,
        )  # fmt: skip
