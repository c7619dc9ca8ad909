"""Jinja set-up of the reports: templates of this folder, with all outside text escaped."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

__all__ = ["markdown_cell", "templates"]


def templates() -> Environment:
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
