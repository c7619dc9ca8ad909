"""The plot of a comparison: loss and training time of every arm, with the frontier of stopping early."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from hybrid_ray.config.optimizers import optimizer_title
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
    log_axes,
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

    The lines are the curves of plain training with the job's optimizer and with every peer, at the mean level of the
    seeds. The losses of each seed are divided by what its plain runs lie above that.
    """
    net = result["net_speedup"]
    line = _line(result["frontier"], net)
    above = (net.get("curve") or {"above": {}})["above"]
    points = {
        arm: [
            (row["time"], row["loss"] / math.exp(above.get(str(row["seed"]), 0.0)))
            for row in rows
            if row["loss"] is not None
        ]
        for arm, rows in result["arms"].items()
    }
    if not any(points.values()):
        return message("No run of the comparison has finished.")
    own = optimizer_title(result["job"]["optimizer"])
    figure, (axes,) = canvas(4.2)
    log_axes(axes)
    axes.plot(line["times"], line["losses"], "-", color=INK, lw=1.6, label=f"frontier: {own} stopped early")
    looks = ((GREEN, "--"), (PURPLE, "-."), (ORANGE, ":"), (VERMILLION, "--"))
    for peer, (colour, style) in zip(result["peers"], cycle(looks), strict=False):
        label = f"{optimizer_title(peer['name'])} stopped early"
        other = _line(peer["frontier"], peer["net_speedup"])
        axes.plot(other["times"], other["losses"], style, color=colour, lw=1.4, label=label)
    top = _MARGIN * max([*axes.dataLim.intervaly, *(loss for arm in _SHOWN for _, loss in points.get(arm, ()))])
    for arm, (label, colour, marker) in arm_styles(points).items():
        if points.get(arm):
            times, losses = zip(*points[arm], strict=True)
            beyond = sum(loss > top for loss in losses)
            named = f"{label} ({beyond} higher)" if beyond else label
            axes.plot(times, losses, marker, color=colour, ms=6.5, alpha=0.85, label=named)
    lowest = min([loss for several in points.values() for _, loss in several] + list(line["losses"]))
    axes.set_ylim(lowest / _MARGIN, top)
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{loss_label(result['job']['words'])}, {result['split']} split")
    legend(figure, axes)
    return figure


def _line(frontier: Mapping[str, Any], net: Mapping[str, Any]) -> Mapping[str, Any]:
    """The curve through all plain runs, at the mean level of the seeds; the frontier's runs where there is none."""
    return net.get("curve") or frontier
