"""The plot of a comparison: loss and training time of every arm, with the frontier of stopping early."""

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

from hybrid_ray.config.optimizers import optimizer_title
from hybrid_ray.config.task import stored_words
from hybrid_ray.report.plots.frontier import arm_styles
from hybrid_ray.report.plots.style import (
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    TIME,
    VERMILLION,
    canvas,
    legend,
    loss_label,
    message,
    styled,
)

__all__ = ["arms_over_frontier"]

_SHOWN = ("hybrid", "baseline", "equal_steps", "equal_time", "placebo")
"""Arms that are in the picture whole; others, such as ``reversed``, may lie far above it."""

_MARGIN = 1.01


@styled
def arms_over_frontier(result: Mapping[str, Any]) -> Figure:
    """Held-out loss over training time, one point per arm and seed.

    The lines are the frontiers of the job's optimizer and of every peer, on the job's own seed. The losses of each seed
    are scaled so that its equal-steps run lies on the frontier of the job's optimizer.
    """
    frontier, shifts = result["frontier"], _shifts(result)
    points = {
        arm: [
            (row["time"], row["loss"] * shifts[row["seed"]])
            for row in rows
            if row["loss"] is not None and row["seed"] in shifts
        ]
        for arm, rows in result["arms"].items()
    }
    if not any(points.values()):
        return message("No run of the comparison has finished.")
    own = optimizer_title(result["job"]["optimizer"])
    figure, (axes,) = canvas(4.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(NullLocator())
    axes.plot(
        frontier["times"], frontier["losses"], "-s", color=INK, ms=4, lw=1.6, label=f"frontier: {own} stopped early"
    )
    looks = ((GREEN, "--"), (PURPLE, "-."), (ORANGE, ":"), (VERMILLION, "--"))
    for peer, (colour, style) in zip(result["peers"], cycle(looks), strict=False):
        label = f"{optimizer_title(peer['name'])} stopped early"
        line = peer["frontier"]
        axes.plot(line["times"], line["losses"], style, color=colour, lw=1.4, marker=".", label=label)
    top = _MARGIN * max([*axes.dataLim.intervaly, *(loss for arm in _SHOWN for _, loss in points.get(arm, ()))])
    for arm, (label, colour, marker) in arm_styles(points).items():
        if points.get(arm):
            times, losses = zip(*points[arm], strict=True)
            beyond = sum(loss > top for loss in losses)
            named = f"{label} ({beyond} higher)" if beyond else label
            axes.plot(times, losses, marker, color=colour, ms=6.5, alpha=0.85, label=named)
    lowest = min([loss for several in points.values() for _, loss in several] + list(frontier["losses"]))
    axes.set_ylim(lowest / _MARGIN, top)
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{loss_label(stored_words(result['job']))}, {result['split']} split")
    legend(figure, axes)
    return figure


def _shifts(result: Mapping[str, Any]) -> dict[int, float]:
    """By seed, what its losses are multiplied with, so that plain training that just stops earlier lies on the line."""
    times, losses = (np.log(result["frontier"][name]) for name in ("times", "losses"))
    equal = [row for row in result["arms"].get("equal_steps", ()) if row["loss"] is not None]
    return {
        row["seed"]: float(np.exp(np.interp(np.log(row["time"]), times, losses))) / row["loss"]
        for row in equal
        if result["frontier"]["times"][0] <= row["time"] <= result["frontier"]["times"][-1]
    }
