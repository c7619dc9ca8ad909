"""The plots of a ladder's report: net speedups, frontiers, how the optimum moves, the order of shared settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from hybrid_ray.ladder.results import Ladder, Rung
from hybrid_ray.ladder.tables import searched
from hybrid_ray.report.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    canvas,
    legend,
    log_axes,
    loss_label,
    message,
    plain_ticks,
    styled,
)

__all__ = ["PLOTS", "LadderPlot"]

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, GREY)
_MARKERS = "osD^vP*"
_MOST_PANELS = 3


@styled
def optimum(ladder: Ladder) -> Figure:
    """Learning rate and searched settings over the model's size: all trials, the best, and the ranges carried up."""
    names = list(dict.fromkeys(name for rung in ladder.rungs for name in searched(rung.study)))[:_MOST_PANELS]
    if not any(rung.study.best is not None for rung in ladder.rungs):
        return message("No rung has a finished trial that predicts yet.")
    figure, panels = canvas(3.1, 1 + len(names))
    rates = [rung.study.job.train.learning_rate for rung in ladder.rungs]
    panels[0].plot(_sizes(ladder.rungs), rates, "o-", color=BLUE, ms=6)
    panels[0].set_yscale("log")
    panels[0].set_title("learning rate")
    for axes, name in zip(panels[1:], names, strict=True):
        _draw_setting(axes, ladder, name)
        axes.set_title(name.replace("_", " "))
    for axes in panels:
        _size_axis(axes, ladder)
        plain_ticks(axes.yaxis)
    legend(figure, panels[-1])
    return figure


@styled
def frontiers(ladder: Ladder) -> Figure:
    """Loss over training seconds: the frontier of stopping early on every rung, and its best trial."""
    lines = [(rung, rung.study.frontier[rung.study.frontier["on_frontier"]]) for rung in ladder.rungs]
    lines = [(rung, line) for rung, line in lines if not line.empty and rung.step_seconds]
    if not lines:
        return message("No frontier has been trained yet.")
    figure, (axes,) = canvas(4.2)
    for (rung, line), colour, marker in zip(lines, _COLOURS * len(lines), _MARKERS * len(lines), strict=False):
        second = rung.step_seconds or 1.0
        axes.plot(line["time"] * second, line["loss"], ".-", color=colour, lw=1.6, label=f"{rung.name} stopped early")
        best = rung.study.best
        if best is not None:
            label = f"best trial of {rung.name}"
            axes.plot(best["time"] * second, best["loss"], marker, color=colour, mec=INK, ms=8, label=label)
    log_axes(axes)
    axes.set_xlabel("training time (s, at the step time of the rung's baseline)")
    axes.set_ylabel(f"{loss_label(ladder.rungs[0].study.words)}, val split")
    legend(figure, axes, columns=2)
    return figure


@styled
def net_speedups(ladder: Ladder) -> Figure:
    """Net speedup of every finished trial over the model's size, with the best of each rung."""
    figure, (axes,) = canvas(3.2)
    drawn = False
    for rung in ladder.rungs:
        done = rung.study.finished_trials.dropna(subset=["net_speedup"])
        if done.empty:
            continue
        drawn = True
        axes.plot([rung.parameters] * len(done), done["net_speedup"], "o", color=GREY, alpha=0.6, label="trials", ms=5)
        best = rung.study.best
        if best is not None and pd.notna(best["net_speedup"]):
            axes.errorbar(
                rung.parameters, best["net_speedup"], yerr=2 * best["net_error"], fmt="D", color=BLUE, ms=7, capsize=3,
                label="best trial, ± 2 standard errors",
            )  # fmt: skip
    if not drawn:
        return message("No trial has a net speedup yet.")
    axes.axhline(1.0, color=INK, lw=1.2, label="stopping early")
    _size_axis(axes, ladder)
    axes.set_ylabel("net speedup (×)")
    handles: dict[str, Any] = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=3)
    return figure


@styled
def shared_settings(ladder: Ladder) -> Figure:
    """The objective of the same settings on two neighbouring rungs, one panel per step of the ladder."""
    steps = [pair for pair in ladder.neighbours if pair.values]
    if not steps:
        return message("No settings have been tried on two rungs yet.")
    figure, panels = canvas(2.9, len(steps))
    for axes, pair in zip(panels, steps, strict=True):
        axes.plot(*zip(*pair.values, strict=True), "o", color=BLUE, ms=6.5, alpha=0.85)
        rho = pair.correlation.rho
        axes.set_title("" if rho is None else f"rank correlation {rho:.2f} (n = {pair.correlation.n})", fontsize=9)
        axes.set_xlabel(f"objective on {pair.below}")
        axes.set_ylabel(f"objective on {pair.above}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
    return figure


def _draw_setting(axes: Axes, ladder: Ladder, name: str) -> None:
    column = f"params_{name}"
    bests = [
        (rung.parameters, float(rung.study.best[column]))
        for rung in ladder.rungs
        if rung.study.best is not None and pd.api.types.is_number(rung.study.best.get(column))
    ]
    for rung in ladder.rungs:
        found = rung.study.finished_trials.get(column, pd.Series(dtype=float))
        values = pd.to_numeric(found, errors="coerce").dropna()
        axes.plot([rung.parameters] * len(values), values, "o", color=GREY, alpha=0.5, ms=4, label="trials")
        ends = rung.transfer["carried"]["ranges"].get(name)
        if ends:
            axes.plot([rung.parameters] * 2, ends, "-", color=MUTED, lw=1.2, label="range carried up", zorder=1)
    if bests:
        axes.plot(*zip(*bests, strict=True), "D-", color=BLUE, ms=6, label="best trial")
        if min(value for _, value in bests) > 0 and "beta3" not in name:
            axes.set_yscale("log")


def _sizes(rungs: Sequence[Rung]) -> list[int]:
    return [rung.parameters for rung in rungs]


def _size_axis(axes: Axes, ladder: Ladder) -> None:
    """A log axis of model sizes, with a tick at every rung that has room."""
    axes.set_xscale("log")
    axes.set_xticks(_sizes(ladder.rungs), [rung.name for rung in ladder.rungs], rotation=30, ha="right")
    axes.xaxis.set_minor_locator(NullLocator())


@dataclass(frozen=True, kw_only=True, slots=True)
class LadderPlot:
    """One plot of the report, with the caption that says what it shows."""

    name: str
    title: str
    caption: str
    draw: Any  # (Ladder) -> Figure


PLOTS = (
    LadderPlot(
        name="net_speedups",
        title="Net speedup by size",
        caption="One column per rung, smallest model left. Above the line is a gain over stopping early; one seed.",
        draw=net_speedups,
    ),
    LadderPlot(
        name="frontiers",
        title="Frontiers of all rungs",
        caption="Lower left is better. Lines: plain training with fewer steps and a fully decayed learning rate. A "
        "best trial below its own line is a gain; below another rung's line it only says that another size is better.",
        draw=frontiers,
    ),
    LadderPlot(
        name="optimum",
        title="How the optimum moves with size",
        caption="Left: the learning rate of the rung. Others: the searched settings, in the steps of each rung. Bars: "
        "the ranges that the rung below handed up.",
        draw=optimum,
    ),
    LadderPlot(
        name="shared_settings",
        title="The same settings on two rungs",
        caption="Each point is one setting, tried on both. If the order carries over, they rise from left to right.",
        draw=shared_settings,
    ),
)
