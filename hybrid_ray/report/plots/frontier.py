"""Plots that compare a study's trials with stopping early: frontier, confirmation, score against net speedup."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybrid_ray.report.load import Study
from hybrid_ray.report.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    STATES,
    TIME,
    VERMILLION,
    WASH,
    canvas,
    legend,
    log_axes,
    loss_label,
    message,
    plain_ticks,
    styled,
)

__all__ = ["arm_styles", "confirmation", "score_and_net", "trials_over_frontier"]

ARMS = {
    "hybrid": ("hybrid", BLUE, "D"),
    "equal_steps": ("equal steps", INK, "s"),
    "equal_time": ("equal time", MUTED, "P"),
    "placebo": ("placebo", ORANGE, "o"),
    "baseline": ("baseline", GREY, "^"),
    "random_direction": ("random direction", PURPLE, "X"),
    "reversed": ("reversed", VERMILLION, "v"),
    "lr_matched": ("learning rate matched", SKY, "*"),
}


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Label, colour and marker of ours, and of a user's own arms among those that are given."""
    own = dict.fromkeys(arm for arm in arms if arm not in ARMS)
    return ARMS | {
        arm: (arm.replace("_", " "), GREY, marker) for arm, marker in zip(own, cycle("<>ph8d"), strict=False)
    }


@styled
def trials_over_frontier(study: Study) -> Figure:
    """Loss and training time of every trial, with the frontier of stopping early. Only points below it are gains."""
    line = study.frontier[study.frontier["on_frontier"]]
    trials = study.trained.dropna(subset=["time", "loss"])
    trials = trials[trials["time"] > 0]
    if line.empty and trials.empty:
        return message("No frontier run and no trial has ended yet.")
    figure, (axes,) = canvas(4.6)
    drawn = pd.concat([line, trials[trials["state"] == "COMPLETE"]])
    drawn = trials if drawn.empty else drawn
    log_axes(axes)
    axes.set_xlim(_around(drawn["time"], 0.06))
    axes.set_ylim(_around(drawn["loss"], 0.12))
    _draw_frontier(axes, study.frontier, "loss")
    shown = trials[trials["loss"].between(*axes.get_ylim()) & trials["time"].between(*axes.get_xlim())]
    for state, (label, colour, marker) in STATES.items():
        chosen = shown[shown["state"] == state]
        if chosen.empty:
            continue
        alpha = 0.9 if state == "COMPLETE" else 0.55
        axes.plot(chosen["time"], chosen["loss"], marker, color=colour, label=label, ms=6.5, mew=1.2, alpha=alpha)
    _mark_best(axes, study)
    _mark_confirmed(axes, study)
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{loss_label(study.words)}, val split")
    if hidden := len(trials) - len(shown):
        axes.text(
            0.99, 0.01, f"{hidden} trial{'s' * (hidden > 1)} outside the plot", color=MUTED, size=8,
            ha="right", va="bottom", transform=axes.transAxes,
        )  # fmt: skip
    _relative_axis(axes, study.baseline)
    legend(figure, axes, columns=3)
    return figure


def _around(values: pd.Series, room: float) -> tuple[float, float]:
    """Limits of a log axis: the range of the values, longer by the share ``room`` at both ends."""
    low, high = float(values.min()), float(values.max())
    margin = max(high / low, 1.02) ** room
    return low / margin, high * margin


def _draw_frontier(axes: Axes, frontier: pd.DataFrame, column: str) -> None:
    """The frontier: the lower envelope of its runs, a power law between them, so straight on these log axes."""
    line = frontier[frontier["on_frontier"]]
    if len(line) >= 2:
        top = axes.get_ylim()[1]
        axes.fill_between(line["time"], line[column], top, color=WASH, lw=0, zorder=0)
        for x, y, text, side in (
            (0.98, 0.95, "worse than stopping early", "right"),
            (0.02, 0.04, "better than stopping early", "left"),
        ):
            axes.text(x, y, text, color=MUTED, size=9, style="italic", ha=side, transform=axes.transAxes)
    axes.plot(line["time"], line[column], "-s", color=INK, ms=4, lw=1.6, label="frontier: stopping early", zorder=2)
    off = frontier[~frontier["on_frontier"] & (frontier["status"] == "finished")]
    if not off.empty:
        label = "plain run, no better than a shorter one"
        axes.plot(off["time"], off[column], "s", color=INK, ms=4, mfc="none", zorder=2, label=label)


def _mark_best(axes: Axes, study: Study) -> None:
    best = study.best
    if best is None:
        return
    axes.plot(best["time"], best["loss"], "*", color=BLUE, ms=16, mec=PAPER, mew=1.0, label="best trial", zorder=5)
    net = best["net_speedup"]
    if pd.notna(net):
        ends = [best["time"], best["time"] * net]
        label = "net speedup of the best trial"
        axes.plot(ends, [best["loss"]] * 2, ":", color=BLUE, lw=1.4, zorder=4, label=label)
    words = f"trial {best['number']:.0f}" + (
        f", net speedup {net:.2f}" if pd.notna(net) else ", outside the frontier's range"
    )
    axes.annotate(
        words,
        (best["time"], best["loss"]),
        (12, -16),
        textcoords="offset points",
        color=INK,
        size=9,
        bbox={"fc": PAPER, "ec": "none", "alpha": 0.8, "pad": 1},
    )


def _mark_confirmed(axes: Axes, study: Study) -> None:
    """The confirmed settings, drawn as far from the frontier as the loss ratio of the fresh seeds says, with interval.

    Their mean loss itself cannot be drawn: losses differ more between seeds than between settings, and the frontier
    belongs to one seed.
    """
    line = study.frontier[study.frontier["on_frontier"]]
    runs = study.confirmation
    for candidate in (study.statistics or {}).get("candidates", ()):
        found = candidate["net_speedup"]["advantage"]
        seeds = runs[(runs["candidate"] == str(candidate["trial"])) & (runs["arm"] == "hybrid")]
        time = seeds.loc[seeds["status"] == "finished", "time"].mean()
        if found["mean"] is None or not line["time"].min() <= time <= line["time"].max():
            continue
        usual = float(np.exp(np.interp(np.log(time), np.log(line["time"]), np.log(line["loss"]))))
        loss = usual / found["mean"]
        low, high = (usual / found[end] if found[end] else loss for end in ("high", "low"))  # no bar for an unknown end
        axes.errorbar(
            time, loss, yerr=[[loss - low], [high - loss]], fmt="D", color=GREEN, ms=6, mec=PAPER,
            capsize=3, lw=1.4, label="fresh seeds, paired, 95 % interval", zorder=6,
        )  # fmt: skip


def _relative_axis(axes: Axes, baseline: pd.DataFrame) -> None:
    done = baseline[baseline["status"] == "finished"]
    if done.empty:
        return
    whole = float(done["time"].iloc[0])
    top = axes.secondary_xaxis("top", functions=(lambda x: np.divide(x, whole), lambda x: np.multiply(x, whole)))
    top.set_xlabel("training time / baseline's training time", color=MUTED, size=9)
    plain_ticks(top.xaxis)
    top.spines["top"].set_visible(False)
    top.tick_params(length=0)


@styled
def confirmation(study: Study) -> Figure:
    """Results on fresh seeds. Left: loss relative to equal steps, paired by seed. Right: net speedup with interval."""
    candidates = (study.statistics or {}).get("candidates", ())
    rows = [(one["trial"], arm, ratios) for one in candidates for arm, ratios in _against_equal_steps(one["runs"])]
    if not rows:
        return message("The confirmation has not finished yet.")
    figure, (left, right) = canvas(1.5 + 0.3 * len(rows), 2)
    styles = arm_styles(arm for _, arm, _ in rows)
    for place, (_, arm, ratios) in enumerate(rows):
        label, colour, marker = styles[arm]
        left.plot(ratios, [place] * len(ratios), marker, color=colour, ms=5, alpha=0.55, mew=0)
        left.plot(np.mean(ratios), place, marker, color=colour, ms=9, mec=PAPER, label=label)
    left.set_yticks(range(len(rows)), [f"trial {trial}: {styles[arm][0]}" for trial, arm, _ in rows])
    left.axvline(0, color=INK, lw=1.2)
    left.set_xlabel("loss above that of equal steps, same seed (%)")
    for place, one in enumerate(candidates):
        _draw_net(right, place, one["net_speedup"])
    right.axvline(1, color=INK, lw=1.2)
    right.set_yticks(range(len(candidates)), [f"trial {one['trial']}" for one in candidates])
    right.set_ylim(len(candidates) - 0.4, -0.6)
    right.set_xlabel("net speedup (×), 95 % interval")
    left.set_ylim(len(rows) - 0.4, -0.6)
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


def _against_equal_steps(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[float]]]:
    """Per arm, how far its loss lies above that of equal steps on the same seed, in percent, one value per seed."""
    equal = {run["seed"]: run["loss"] for run in runs.get("equal_steps", ()) if run["loss"] is not None}
    found = [
        (arm, [100 * (run["loss"] / equal[run["seed"]] - 1) for run in those if run["loss"] and run["seed"] in equal])
        for arm, those in runs.items()
        if arm not in ("equal_steps", "baseline")
    ]
    return [(arm, ratios) for arm, ratios in found if ratios]


def _draw_net(axes: Axes, place: int, net: Mapping[str, Any]) -> None:
    """One candidate's net speedup: seeds, mean, interval. An unknown end of the interval is drawn as an arrow."""
    known = [low for low, high in net["seeds"].values() if low is not None and low == high]
    axes.plot(known, [place] * len(known), "D", color=BLUE, ms=5, alpha=0.55, mew=0)
    if net["mean"] is None:
        return
    low, high = net["low"], net["high"]
    axes.plot([low or net["mean"], high or net["mean"]], [place, place], "-", color=BLUE, lw=1.6)
    for end, marker in ((low, "<"), (high, ">")):
        axes.plot(end or net["mean"], place, "|" if end else marker, color=BLUE, ms=9, mew=1.6)
    axes.plot(net["mean"], place, "D", color=BLUE, ms=9, mec=PAPER)


@styled
def score_and_net(study: Study) -> Figure:
    """Net speedup over score of every finished trial: a high score need not be a gain over stopping early."""
    done = study.trained[study.trained["state"] == "COMPLETE"].dropna(subset=["score", "net_speedup"])
    if done.empty:
        return message("No finished trial has a loss within the frontier's range yet.")
    figure, (axes,) = canvas(3.4)
    lowest, highest = min(0.97, done["net_speedup"].min() - 0.03), max(1.03, done["net_speedup"].max() + 0.03)
    axes.set_ylim(lowest, highest)
    axes.axhspan(lowest, 1.0, color=WASH, lw=0, zorder=0)
    axes.axhline(1.0, color=INK, lw=1.2)
    axes.annotate(
        "stopping early", (1, 1), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="right", size=9, color=MUTED, style="italic",
    )  # fmt: skip
    for inert, label, fill in ((0, "trial", BLUE), (1, "inert (predicts under 5 % of steps)", "none")):
        rows = done[done["inert"] == inert]
        if rows.empty:
            continue
        axes.plot(rows["score"], rows["net_speedup"], "o", color=BLUE, mfc=fill, ms=6.5, label=label, alpha=0.9)
    best = study.best
    if best is not None and pd.notna(best["net_speedup"]):
        axes.plot(best["score"], best["net_speedup"], "*", color=BLUE, ms=16, mec=PAPER, label="best trial")
    axes.set_xlabel("score: speedup minus loss penalty (1 = baseline)")
    axes.set_ylabel("net speedup (×)")
    legend(figure, axes)
    return figure
