"""The report of a ladder: ``report.html`` (one file that loads nothing) and ``report.md`` with ``plots/*.png``."""

from pathlib import Path
from typing import Any

from hybrid_ray.ladder import tables
from hybrid_ray.ladder.plots import PLOTS
from hybrid_ray.ladder.results import Ladder, load_ladder
from hybrid_ray.report.pages import shown_directory, write_pages

__all__ = ["write_ladder"]


def write_ladder(directory: Path) -> str:
    """Write the report of a ladder from its studies, and return the headline.

    Raises:
        StoreError: there is no ladder, or the pages cannot be written (earlier pages stay as they are).
    """
    ladder = load_ladder(directory)
    content = _content(ladder)
    write_pages(directory, "ladder", content, {plot.name: plot.draw(ladder) for plot in PLOTS})
    return str(content["headline"])


def _content(ladder: Ladder) -> dict[str, Any]:
    """The content of both templates."""
    return {
        "name": ladder.job.name,
        "headline": tables.sentence(ladder),
        "facts": _facts(ladder),
        "finished": ladder.finished,
        "plots": PLOTS,
        "results": tables.results(ladder),
        "optima": tables.optima(ladder),
        "correlations": tables.correlations(ladder),
        "from_nothing": tables.from_nothing(ladder),
        "costs": tables.costs(ladder),
        "next_rung": tables.next_rung(ladder),
        "rungs": [rung.name for rung in ladder.rungs],
        "directory": shown_directory(ladder.directory),
    }


def _facts(ladder: Ladder) -> list[str]:
    """What was climbed, in short phrases."""
    job = ladder.job
    rules = {
        "retune": "learning rate tuned on each rung",
        "width_rule": f"learning rate by width to the power of {job.ladder.width_exponent:g}, not tuned",
        "fixed": "learning rate not tuned",
    }
    kept = ", ".join(name.replace("_", " ") for name in job.ladder.shares_of_run)
    return [
        f"{len(ladder.rungs)} of {len(job.ladder.rungs)} rungs",
        f"predictor {job.hybrid.predictor.name}",
        f"objective {job.objective.mode}",
        rules[job.ladder.learning_rate],
        f"shares of the run: {kept or 'none'}",
    ]
