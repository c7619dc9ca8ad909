"""Writes the pages of a report from the templates of this folder, with all outside text escaped."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from matplotlib.figure import Figure

from hybrid_ray.report.plots.style import png, svg
from hybrid_ray.storage.atomic import write_atomic

__all__ = ["markdown_cell", "shown_directory", "write_pages"]


def write_pages(directory: Path, template: str, content: Mapping[str, Any], figures: Mapping[str, Figure]) -> None:
    """Write ``report.html`` (one file that loads nothing), ``report.md`` and ``plots/*.png``, replacing old ones.

    Args:
        template: the name that both templates share, such as ``comparison``.
        content: what they show. The time of writing is added.
        figures: by name; the HTML template finds them in ``pictures``.

    Raises:
        StoreError: a file cannot be written; those that could not be replaced are kept.
    """
    environment = _templates()
    shown = {**content, "written": datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC")}
    pictures = {name: Markup(svg(figure)) for name, figure in figures.items()}  # matplotlib escapes its own text
    page = environment.get_template(f"{template}.html.j2").render(shown, pictures=pictures)
    text = environment.get_template(f"{template}.md.j2").render(shown)
    for name, figure in figures.items():
        write_atomic(directory / "plots" / f"{name}.png", png(figure))
    write_atomic(directory / "report.md", text.encode())
    write_atomic(directory / "report.html", page.encode())


def shown_directory(directory: Path) -> str:
    """A directory for the commands of a report, relative to the folder that the command was given in."""
    return f"{directory.parent.name}/{directory.name}" if directory.is_absolute() else str(directory)


def _templates() -> Environment:
    """Jinja's environment for ``templates/``. A template that uses an undefined name raises an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(enabled_extensions=("html", "html.j2", "css.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    return environment


def markdown_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table: one line, and no character of it is read as markup."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))
