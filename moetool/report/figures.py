"""Pictures of a report: its figures enter, one tall PNG or SVG file leaves, the same bytes for the same report."""

from __future__ import annotations

import re
import textwrap
from functools import cache
from io import BytesIO
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.figure import SubFigure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from moetool.errors import MoetoolError
from moetool.report.formats import Page
from moetool.report.report import Figure, Panel, Report
from moetool.report.values import inert, shorten

# Okabe and Ito's palette, which people with any colour vision can tell apart (jfly.uni-koeln.de/color).
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#DDDDDD"
_LINES = (_BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", _VERMILION, "#000000", "#8C6D1F")
_DASHES = ("-", "--", ":", "-.")
_CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC",
              "Hiragino Sans", "Microsoft YaHei", "SimHei", "Arial Unicode MS")  # fmt: skip
_WIDTH_INCHES = 10.0
_DOTS_PER_INCH = 150
_TALLEST_DOTS = 32_000
"""Agg draws no picture taller than 2**16 dots; a very tall one is drawn coarser."""
_LABELS_BELOW, _LABELS_BESIDE = 16, 40
"""Up to so many labels are written at a panel; more are thinned out."""
_IDENTIFIER = re.compile(rb'((?:id="|#))([A-Za-z]+[0-9a-f]{10})(?=["\)])')
_SINGLE_BARS = 32
"""More bars than that are drawn as one outline: the gaps would flicker, and thousands of bars take minutes."""


def render_png(report: Report, page: Page) -> bytes:
    """The report's figures below one another as PNG; MoetoolError where it has none."""
    return _render(report, "png", {"Software": None})


def render_svg(report: Report, page: Page) -> bytes:
    """The report's figures below one another as SVG, with their sentences as description."""
    description = " ".join(figure.alt for figure in report.figures)
    drawn = _render(report, "svg", {"Date": None, "Title": f"moetool {report.command}", "Description": description})
    return _number_ids(drawn)


def _number_ids(drawn: bytes) -> bytes:
    """Number identifiers: matplotlib makes them from coordinates, whose last bits the layout leaves to chance."""
    numbers: dict[bytes, bytes] = {}

    def number(match: re.Match[bytes]) -> bytes:
        return match[1] + numbers.setdefault(match[2], b"%s%d" % (match[2][:1], len(numbers)))

    return _IDENTIFIER.sub(number, drawn)


def _render(report: Report, kind: str, metadata: dict[str, Any]) -> bytes:
    if not report.figures:
        raise MoetoolError(f"moetool {report.command} draws no figures: there is nothing to save as .{kind}")
    output = BytesIO()
    with matplotlib.style.context(["default", _style()]):
        canvas = _draw(report.figures)
        dots = min(_DOTS_PER_INCH, _TALLEST_DOTS / canvas.get_figheight())
        canvas.savefig(output, format=kind, dpi=dots, metadata=metadata)
    return output.getvalue()


def _style() -> dict[str, Any]:
    return {
        "font.family": list(_fonts()),
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


@cache
def _fonts() -> tuple[str, ...]:
    """Matplotlib's own font, and those installed that know Chinese, Japanese and Korean."""
    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _CJK_FONTS if name in installed))


@cache
def _known_characters() -> frozenset[int]:
    paths = [fontManager.findfont(name) for name in _fonts()]
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def _label(text: str, width: int = 24) -> str:
    """Text that the fonts can draw, cut to ``width``: a character without a glyph is spelled out, not a box."""
    known = _known_characters()
    drawn = "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in inert(text))
    return shorten(drawn, width)


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
    columns = min(panels, 2 if panels <= 4 else 4)
    return -(-panels // columns), columns


def _height(figure: Figure) -> float:
    rows, columns = _grid(figure)
    titles = 0.7 + 0.2 * (1 + _wrapped(figure.title).count("\n"))
    if _lies_down(figure):
        return titles + max(0.3 * len(figure.panels[0].x), 1.0)
    if figure.kind == "heatmap":
        tallest = max(len(panel.series) for panel in figure.panels)
        panel_height = min(max(0.9 + 0.28 * tallest, 2.2), 9.0)
    else:
        panel_height = {1: 2.8, 2: 2.2}.get(columns, 1.5)
    return titles + rows * (panel_height + _slant(figure.panels[0].x))


def _slant(names: tuple[str, ...]) -> float:
    """Inches below a panel for labels that are too long to stand side by side."""
    shown = _spread(len(names), _LABELS_BELOW)
    longest = max(len(_label(names[place])) for place in shown)
    return 0.06 * longest if longest > 4 and len(shown) > 4 else 0.0


def _lies_down(figure: Figure) -> bool:
    """Whether the bars are drawn from left to right: one panel of few bars with names."""
    names = figure.panels[0].x
    return figure.kind == "bars" and len(figure.panels) == 1 and len(names) <= 30 and max(map(len, names)) > 4


def _draw_figure(part: SubFigure, figure: Figure) -> None:
    rows, columns = _grid(figure)
    shared = figure.kind != "heatmap"
    axes = part.subplots(rows, columns, squeeze=False, sharey=shared).ravel()
    part.suptitle(_wrapped(figure.title), x=0.01, ha="left", fontweight="bold", fontsize=11)
    x_title, y_title = _label(figure.x_title, 60), _label(figure.y_title, 60)
    if _lies_down(figure):
        _draw_lying_bars(axes[0], figure.panels[0])
        x_title, y_title = y_title, x_title
    elif figure.kind == "heatmap":
        _draw_heatmaps(part, list(axes), figure)
    else:
        for axis, panel in zip(axes, figure.panels, strict=False):
            _draw_bars(axis, panel) if figure.kind == "bars" else _draw_lines(axis, panel)
    for axis, panel in zip(axes, figure.panels, strict=False):
        axis.set_title(_label(panel.title, 40), loc="left")
    reference = figure.panels[0].reference
    if reference is not None and figure.kind != "heatmap":
        axes[0].set_title(f"reference {reference:.3g}", loc="right", color=_VERMILION, fontsize=8)
    for axis in axes[len(figure.panels) :]:
        axis.set_visible(False)
    part.supxlabel(x_title, fontsize=9)
    part.supylabel("" if figure.kind == "heatmap" else y_title, fontsize=9)


def _wrapped(title: str) -> str:
    return "\n".join(textwrap.wrap(_label(title, 300), 90))


def _draw_bars(axis: Axes, panel: Panel) -> None:
    heights = [0.0 if value is None else value for value in panel.series[0][1]]
    if len(heights) <= _SINGLE_BARS:
        axis.bar(range(len(heights)), heights, color=_BLUE, width=0.9)
    else:
        axis.stairs(heights, [place - 0.5 for place in range(len(heights) + 1)], fill=True, color=_BLUE)
    axis.grid(axis="y")
    _mark_reference(axis, panel.reference)
    _label_x(axis, panel.x)


def _draw_lying_bars(axis: Axes, panel: Panel) -> None:
    lengths = [0.0 if value is None else value for value in panel.series[0][1]]
    axis.barh(range(len(lengths)), lengths, color=_BLUE, height=0.75)
    axis.set_yticks(range(len(panel.x)), [_label(name) for name in panel.x])
    axis.invert_yaxis()
    axis.grid(axis="x")
    _mark_reference(axis, panel.reference, upright=True)


def _draw_lines(axis: Axes, panel: Panel) -> None:
    for index, (name, values) in enumerate(panel.series):
        known = [float("nan") if value is None else value for value in values]
        style = _DASHES[index // len(_LINES) % len(_DASHES)]
        axis.plot(known, style, color=_LINES[index % len(_LINES)], marker="o", markersize=3, label=_label(name))
    axis.grid(axis="y")
    _mark_reference(axis, panel.reference)
    _label_x(axis, panel.x)
    if len(panel.series) > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def _mark_reference(axis: Axes, reference: float | None, upright: bool = False) -> None:
    if reference is None:
        return
    (axis.axvline if upright else axis.axhline)(reference, color=_VERMILION, linestyle="--", linewidth=1.0)


def _spread(count: int, most: int) -> list[int]:
    """Places of the labels of ``count`` things: all of them, or round steps where there are more than ``most``."""
    if count <= most:
        return list(range(count))
    located = MaxNLocator(nbins=most // 2, integer=True).tick_values(0, count - 1)
    return [int(place) for place in located if 0 <= place < count]


def _label_x(axis: Axes, names: tuple[str, ...]) -> None:
    shown = _spread(len(names), _LABELS_BELOW)
    labels = [_label(names[place]) for place in shown]
    slanted = _slant(names) > 0
    axis.set_xticks(shown, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axis.margins(x=0.01)


def _draw_heatmaps(part: SubFigure, axes: list[Axes], figure: Figure) -> None:
    values = [value for panel in figure.panels for _, row in panel.series for value in row if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    # Values on both sides of zero get two hues that meet there.
    both = low < 0 < high
    norm = TwoSlopeNorm(0.0, -max(-low, high), max(-low, high)) if both else Normalize(low, high)
    image = None
    for axis, panel in zip(axes, figure.panels, strict=False):
        rows = [[float("nan") if value is None else value for value in row] for _, row in panel.series]
        axis.set_facecolor(_GREY)
        image = axis.imshow(
            rows, aspect="auto", cmap="PuOr_r" if both else "viridis", norm=norm, interpolation="nearest"
        )
        _label_x(axis, panel.x)
        shown = _spread(len(rows), _LABELS_BESIDE)
        axis.set_yticks(shown, [_label(panel.series[place][0]) for place in shown])
    if image is not None:
        part.colorbar(image, ax=axes, shrink=0.8, pad=0.02, label=_label(figure.y_title, 60))
