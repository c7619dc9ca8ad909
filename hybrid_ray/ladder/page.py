"""The report of a ladder: ``report.html`` (one file that loads nothing) and ``report.md`` with ``plots/*.png``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hybrid_ray.ladder import tables
from hybrid_ray.ladder.plots import PLOTS
from hybrid_ray.ladder.results import Ladder, load_ladder
from hybrid_ray.report.pages import templates
from hybrid_ray.report.plots.style import png, svg
from hybrid_ray.storage.atomic import write_atomic

__all__ = ["write_ladder"]


def write_ladder(directory: Path) -> str:
    """Write the report of a ladder from its studies, and return the headline.

    Raises:
        StoreError: there is no ladder, or the pages cannot be written (earlier pages stay as they are).
    """
    ladder = load_ladder(directory)
    content, environment = _content(ladder), templates()
    figures = {plot.name: plot.draw(ladder) for plot in PLOTS}
    pictures = {name: Markup(svg(figure)) for name, figure in figures.items()}
    page = environment.get_template("ladder.html.j2").render(content, pictures=pictures)
    for name, figure in figures.items():
        write_atomic(directory / "plots" / f"{name}.png", png(figure))
    write_atomic(directory / "report.md", environment.get_template("ladder.md.j2").render(content).encode())
    write_atomic(directory / "report.html", page.encode())
    return str(content["headline"])


def _content(ladder: Ladder) -> dict[str, Any]:
    """The content of both templates."""
    job, directory = ladder.job, ladder.directory
    return {
        "name": job.name,
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
        "directory": f"{directory.parent.name}/{directory.name}" if directory.is_absolute() else str(directory),
        "written": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
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
