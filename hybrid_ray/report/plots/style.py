"""The style of all figures of a report: canvas, colour-blind-safe palette, SVG and PNG output.

Colours are Okabe and Ito's ("Color Universal Design", 2008); a marker's shape always repeats what its colour says.
Figures are made without pyplot, so there is no global state, nothing to close, and any backend works.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

__all__ = [
    "BLUE", "GREEN", "GREY", "INK", "MUTED", "ORANGE", "PAPER", "PURPLE", "SKY", "STATES", "TIME", "VERMILLION",
    "WASH",
    "canvas", "legend", "log_axes", "loss_label", "message", "plain_ticks", "png", "styled", "svg",
]  # fmt: skip

BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
VERMILLION, PURPLE, GREY = "#d55e00", "#cc79a7", "#8c959f"
INK, MUTED, GRID, PAPER, WASH = "#1f2329", "#59636f", "#e3e6ea", "#fefefe", "#f3f1ec"
"""Text, secondary text, grid lines, background, shaded region. These and blue change with the page's dark mode."""

STATES = {
    "COMPLETE": ("finished", BLUE, "o"),
    "PRUNED": ("stopped early or diverged", ORANGE, "v"),
    "FAIL": ("failed", VERMILLION, "x"),
    "RUNNING": ("running", PURPLE, "s"),
}
"""By state of a trial: its label, colour and marker."""

TIME = "training time (plain steps)"

WIDTH = 7.4  # inches, at 10-point text: what a column of the report holds

_STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "hybrid_ray",
}

_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Make ``draw`` use the report's style, without reading or changing the caller's matplotlib settings."""

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with _style():
            figure = draw(*args, **kwargs)
            figure.draw_without_rendering()  # creates the ticks now, while the style is active
            figure.set_layout_engine("none")  # the layout is done; later drawings must not repeat it
            return figure

    return drawn


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def canvas(height: float, columns: int = 1, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """An empty figure of the report's width, ``height`` inches high, with ``columns`` panels side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, sharey=sharey, squeeze=False)
    return figure, list(panels[0])


def loss_label(words: Mapping[str, str]) -> str:
    """The label of a loss axis, with its unit; ``words`` of `config.task.task_words`."""
    return f"held-out loss ({words['measure']}/{words['unit']})"


def message(text: str) -> Figure:
    """A figure that shows only ``text``: why there is nothing to draw."""
    figure, (axes,) = canvas(0.7)
    axes.axis("off")
    axes.text(0, 0.5, text, color=MUTED, va="center", transform=axes.transAxes)
    return figure


def log_axes(axes: Axes) -> None:
    """Make both axes logarithmic, with a few plain numbers as ticks: a plot may span far less than a decade."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis)


def plain_ticks(axis: Axis) -> None:
    """A few round numbers as ticks, without exponents; for a log axis, after its scale was set."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())


def legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """One legend above the panels, where it hides no point; each label once."""
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)


def png(figure: Figure) -> bytes:
    """The figure as PNG for report.md and slides, 2 pixels per point, light background."""
    buffer = io.BytesIO()
    before = figure.dpi
    figure.dpi = 144
    with _style():
        target: Any = FigureCanvasAgg(figure)
        target.print_png(buffer, metadata={"Software": None})  # savefig would draw everything twice
    figure.dpi = before
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """The figure as SVG to embed in a page: text in the page's font, colours that follow its light or dark mode.

    Equal figures give equal bytes, so a report written again differs only where the study does.
    """
    buffer = io.StringIO()
    with _style():
        target: Any = FigureCanvasSVG(figure)
        target.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)  # figure_1, axes_1, ... would repeat in one page
    text = text.replace("'DejaVu Sans'", "system-ui, 'Helvetica Neue', Arial")
    for name, colour in (
        ("ink", INK),
        ("muted", MUTED),
        ("grid", GRID),
        ("paper", PAPER),
        ("wash", WASH),
        ("blue", BLUE),
    ):
        text = text.replace(colour, f"var(--{name})")
    return text
