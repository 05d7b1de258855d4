"""Pictures of a report: its figures enter, one tall PNG or SVG file leaves, the same bytes for the same report."""

from __future__ import annotations

import re
import textwrap
from io import BytesIO
from typing import Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from moetool.report.figures_panels import (
    REFERENCE_COLOR,
    draw_bars,
    draw_flows,
    draw_heatmaps,
    draw_lines,
    draw_lying_bars,
    draw_points,
    fonts,
    label,
    slant,
)
from moetool.report.formats import Page
from moetool.report.report import Figure, Report
from moetool.report.values import inert

_WIDTH_INCHES = 10.0
_DOTS_PER_INCH = 150
_TALLEST_DOTS = 32_000
"""Agg draws no picture taller than 2**16 dots; a very tall one is drawn coarser."""
_IDENTIFIER = re.compile(rb'((?:id="|#))([A-Za-z]+[0-9a-f]{10})(?=["\)])')
_HEIGHTS = {"bars": {1: 2.8, 2: 2.2, 4: 1.5}, "lines": {1: 2.8, 2: 2.2, 4: 1.5}, "flows": {1: 4.5, 2: 3.4, 4: 2.3},
            "heatmap": {1: 9.0, 2: 4.5, 4: 2.2}, "points": {1: 5.0, 2: 3.4, 4: 2.3}}  # fmt: skip
"""Inches of a panel by kind and columns of panels; a heatmap of few rows is lower."""


def render_png(report: Report, page: Page) -> bytes:
    """The report's figures below one another as PNG, or a sentence where it has none."""
    return _render(report, "png", {"Software": None})


def render_svg(report: Report, page: Page) -> bytes:
    """The report's figures below one another as SVG, with their sentences as description."""
    description = " ".join(inert(figure.alt) for figure in report.figures)
    drawn = _render(report, "svg", {"Date": None, "Title": f"moetool {report.command}", "Description": description})
    return _number_ids(drawn)


def _number_ids(drawn: bytes) -> bytes:
    """Number identifiers: matplotlib makes them from coordinates, whose last bits the layout leaves to chance."""
    numbers: dict[bytes, bytes] = {}

    def number(match: re.Match[bytes]) -> bytes:
        return match[1] + numbers.setdefault(match[2], b"%s%d" % (match[2][:1], len(numbers)))

    return _IDENTIFIER.sub(number, drawn)


def _render(report: Report, kind: str, metadata: dict[str, Any]) -> bytes:
    output = BytesIO()
    with matplotlib.style.context(["default", _style()]):
        canvas = _draw(report.figures) if report.figures else _say(f"moetool {report.command}: nothing to draw")
        dots = min(_DOTS_PER_INCH, _TALLEST_DOTS / canvas.get_figheight())
        canvas.savefig(output, format=kind, dpi=dots, metadata=metadata)
    return output.getvalue()


def _style() -> dict[str, Any]:
    return {
        "font.family": list(fonts()),
        "font.size": 9,
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#666666",
        "axes.titlesize": 9,
        "axes.axisbelow": True,
        "grid.color": "#E5E5E5",
        "grid.linewidth": 0.6,
        "xtick.color": "#444444",
        "ytick.color": "#444444",
        "legend.frameon": False,
        # Without a salt the identifiers in an SVG are random.
        "svg.hashsalt": "moetool",
    }


def _say(sentence: str) -> Canvas:
    """A picture of a sentence: a run that found nothing to draw has not failed."""
    canvas = Canvas(figsize=(_WIDTH_INCHES, 1.0))
    FigureCanvasAgg(canvas)
    canvas.text(0.02, 0.5, sentence, va="center")
    return canvas


def _draw(figures: tuple[Figure, ...]) -> Canvas:
    heights = [_height(figure) for figure in figures]
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    canvas = Canvas(figsize=(_WIDTH_INCHES, sum(heights)), layout=layout)
    FigureCanvasAgg(canvas)
    parts = canvas.subfigures(len(figures), 1, height_ratios=heights, squeeze=False)
    for part, figure in zip(parts[:, 0], figures, strict=True):
        _draw_figure(part, figure)
    return canvas


def _grid(figure: Figure) -> tuple[int, int]:
    """Rows and columns of panels: few are large, many are small multiples."""
    panels = len(figure.panels)
    columns = 1 if panels == 1 else 2 if panels <= 4 else 4
    return -(-panels // columns), columns


def _height(figure: Figure) -> float:
    rows, _ = _grid(figure)
    titles = 0.7 + 0.2 * (1 + _wrapped(figure.title).count("\n"))
    if _lies_down(figure):
        return titles + max(0.3 * len(figure.panels[0].x), 1.0)
    below = 0.0 if figure.kind in ("flows", "points") else slant(figure.panels[0].x)
    return titles + rows * (_panel_height(figure) + below)


def _panel_height(figure: Figure) -> float:
    highest = _HEIGHTS[figure.kind][_grid(figure)[1]]
    if figure.kind != "heatmap":
        return highest
    return min(max(0.9 + 0.28 * max(len(panel.series) for panel in figure.panels), 2.2), highest)


def _lies_down(figure: Figure) -> bool:
    """Whether the bars are drawn from left to right: one panel of few bars with names."""
    names = figure.panels[0].x
    return figure.kind == "bars" and len(figure.panels) == 1 and len(names) <= 30 and max(map(len, names)) > 4


def _draw_figure(part: SubFigure, figure: Figure) -> None:
    rows, columns = _grid(figure)
    every = part.subplots(rows, columns, squeeze=False, sharey=figure.kind in ("bars", "lines")).ravel()
    axes = list(every[: len(figure.panels)])
    part.suptitle(_wrapped(figure.title), x=0.01, ha="left", fontweight="bold", fontsize=11)
    x_title, y_title = label(figure.x_title, 60), label(figure.y_title, 60)
    if _lies_down(figure):
        draw_lying_bars(axes[0], figure.panels[0])
        x_title, y_title = y_title, x_title
    elif figure.kind == "heatmap":
        draw_heatmaps(part, axes, figure, _panel_height(figure))
        y_title = ""
    else:
        draw = {"bars": draw_bars, "lines": draw_lines, "flows": draw_flows, "points": draw_points}[figure.kind]
        for axis, panel in zip(axes, figure.panels, strict=True):
            draw(axis, panel)
        if figure.kind == "flows":
            x_title, y_title = f"height: {y_title}" if y_title else "", ""
    for axis, panel in zip(axes, figure.panels, strict=True):
        axis.set_title(label(panel.title, 40), loc="left")
    reference = figure.panels[0].reference
    if reference is not None and figure.kind in ("bars", "lines"):
        axes[0].set_title(f"reference {reference:.3g}", loc="right", color=REFERENCE_COLOR, fontsize=8)
    for axis in every[len(axes) :]:
        axis.set_visible(False)
    part.supxlabel(x_title, fontsize=9)
    part.supylabel(y_title, fontsize=9)


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(label(title, 300), 90))
