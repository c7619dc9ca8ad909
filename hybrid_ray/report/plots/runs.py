"""Plots of what happens inside runs: phases, confidence, time per step."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hybrid_ray.report.load import Study
from hybrid_ray.report.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    WASH,
    canvas,
    legend,
    message,
    styled,
)
from hybrid_ray.run_result import RunResult

__all__ = ["phase_shares", "shade_outside", "signals", "step_time"]

PHASES = {"warmup": GREY, "full": BLUE, "predict": ORANGE, "correct": SKY}
PARTS = {"data": GREY, "forward": SKY, "backward": BLUE, "optimizer": GREEN, "overhead": PURPLE}
MOST = 40  # bars in one plot


@styled
def phase_shares(study: Study) -> Figure:
    """Share of nominal steps in each phase, one bar per trial."""
    ended = study.trained[study.trained["steps"] > 0]
    if len(ended) > MOST:
        ended = ended.nlargest(MOST, "score").sort_values("number")
    results = {int(number): study.result(int(number)) for number in ended["number"]}
    shares = {number: result.phase_steps for number, result in results.items() if result and result.steps}
    if not shares:
        return message("No trial has ended yet.")
    figure, (axes,) = canvas(3.0)
    places = range(len(shares))
    bottom = [0.0] * len(shares)
    for phase, colour in PHASES.items():
        heights = [steps.get(phase, 0) / max(1, sum(steps.values())) for steps in shares.values()]
        axes.bar(places, heights, bottom=bottom, color=colour, label=phase, width=0.78)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set_xticks(places, [str(number) for number in shares])
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("trial")
    axes.set_ylabel("share of nominal steps")
    legend(figure, axes)
    return figure


@styled
def signals(study: Study) -> Figure:
    """Confidence over the steps of the best trial, the threshold, and which steps were predicted."""
    best = study.best
    if best is None:
        return message("No trial that predicts has finished yet.")
    steps = study.steps(int(best["number"]))
    figure, (axes,) = canvas(2.8)
    confidence = steps["confidence"].astype(float)
    computed = confidence.notna().any()
    if computed:
        axes.plot(steps["step"], confidence, color=BLUE, lw=1.4, label="confidence")
    threshold = best.get("params_confidence_threshold")
    if pd.notna(threshold):
        axes.axhline(float(threshold), color=INK, lw=1.2, ls="--", label="threshold")
    predicted = steps.loc[steps["predicted"].astype(bool), "step"]
    axes.plot(
        predicted,
        [-0.04] * len(predicted),
        "|",
        color=ORANGE,
        ms=7,
        mew=0.8,
        label=f"predicted steps ({len(predicted)})",
    )
    events = steps["event"].fillna("")
    overshoot = events == "overshoot"
    for chosen, marker, colour, label in (
        (overshoot, "1", MUTED, "overshoot (measured only)"),
        ((events != "") & ~overshoot, "v", PURPLE, "recovery or rejected update"),
    ):
        if chosen.any():
            heights = confidence.fillna(0.5)[chosen]
            axes.plot(steps["step"][chosen], heights, marker, color=colour, ms=6, label=label)
    shade_outside(axes, study, steps["step"].max())
    axes.set_xlabel("nominal step")
    if computed:
        axes.set_ylim(-0.08, 1.05)
        axes.set_ylabel("confidence")
    else:  # two rows of marks, whose height says nothing
        axes.set_ylim(-0.15, 0.6)
        rows = {"predicted": -0.04} | ({"events": 0.5} if (events != "").any() else {})
        axes.set_yticks(list(rows.values()), list(rows))
    legend(figure, axes)
    return figure


def shade_outside(axes: Axes, study: Study, steps: float) -> None:
    """Shade the first and last parts of a run, in which the job allows no predictions."""
    hybrid = study.job.hybrid
    parts = [(0.0, hybrid.predicts_from), (hybrid.predicts_until, 1.0)]
    for place, (start, end) in enumerate(part for part in parts if part[0] < part[1]):
        label = None if place else "no predictions allowed (first_fraction, off_fraction)"
        axes.axvspan(steps * start, steps * end, color=WASH, lw=0, zorder=0, label=label)


@styled
def step_time(study: Study) -> Figure:
    """Milliseconds per step: left by phase, right by part of a real step."""
    best, baseline = study.best, study.result("baseline")
    result = study.result(int(best["number"])) if best is not None else None
    runs = {name: run for name, run in (("baseline", baseline), ("best trial", result)) if run}
    if not runs:
        return message("No run with timings has ended yet.")
    figure, (left, right) = canvas(2.6, 2)
    _phase_bars(left, result or next(iter(runs.values())))
    _part_bars(right, runs)
    legend(figure, right, columns=6)
    return figure


def _phase_bars(axes: Axes, result: RunResult) -> None:
    phases = [phase for phase in PHASES if result.phase_steps.get(phase)]
    each = [1e3 * result.phase_seconds.get(phase, 0.0) / result.phase_steps[phase] for phase in phases]
    axes.barh(phases, each, color=[PHASES[phase] for phase in phases], height=0.6)
    for place, value in enumerate(each):
        axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center", size=9)
    plain = 1e3 * result.step_seconds
    axes.axvline(plain, color=INK, lw=1.2, ls="--")
    axes.set_xlim(0, 1.18 * max(plain, *each))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms per step (dashed: plain step)")


def _part_bars(axes: Axes, runs: dict[str, RunResult]) -> None:
    left = dict.fromkeys(runs, 0.0)
    for part, colour in PARTS.items():
        widths = [1e3 * run.part_seconds.get(part, 0.0) / max(1, run.real_steps) for run in runs.values()]
        if any(widths):
            axes.barh(list(runs), widths, left=list(left.values()), color=colour, label=part, height=0.55)
        left = {name: left[name] + width for name, width in zip(left, widths, strict=True)}
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("ms per real step")
