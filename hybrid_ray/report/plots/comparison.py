"""The picture of a comparison: every arm over the frontier of just stopping earlier."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from hybrid_ray.config.task import stored_words
from hybrid_ray.report.plots.frontier import ARMS
from hybrid_ray.report.plots.style import INK, TIME, canvas, legend, loss_label, message, styled

__all__ = ["arms_over_frontier"]


@styled
def arms_over_frontier(result: Mapping[str, Any]) -> Figure:
    """One point a seed and arm: held-out loss over training time. The line is the frontier of the job's own seed."""
    frontier = result["frontier"]
    points = {
        arm: [(row["time"], row["loss"]) for row in rows if row["loss"] is not None]
        for arm, rows in result["arms"].items()
    }
    if not any(points.values()):
        return message("No arm came to its end.")
    figure, (axes,) = canvas(4.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_locator(MaxNLocator(1))
    axes.plot(frontier["times"], frontier["losses"], "-s", color=INK, ms=4, lw=1.6, label="frontier: real steps only")
    for arm, (label, colour, marker) in ARMS.items():
        if points.get(arm):
            times, losses = zip(*points[arm], strict=True)
            axes.plot(times, losses, marker, color=colour, ms=6.5, alpha=0.85, label=label)
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{loss_label(stored_words(result['job']))}, {result['split']} split")
    legend(figure, axes)
    return figure
