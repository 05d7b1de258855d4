"""What is inside a picture's axes: a Panel enters, matplotlib's axes get its bars, lines, shaded cells or bands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import SubFigure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from moetool.report.report import Figure, Panel
from moetool.report.values import inert, shorten

# Okabe and Ito's palette, which people with any colour vision can tell apart (jfly.uni-koeln.de/color).
_BLUE, REFERENCE_COLOR, _GREY = "#0072B2", "#D55E00", "#AAAAAA"
_LINES = (_BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", REFERENCE_COLOR, "#000000", "#8C6D1F")
_DASHES = ("-", "--")
_MARKERS = ("o", "s", "^", "x")
_CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC",
              "Hiragino Sans", "Microsoft YaHei", "SimHei", "Arial Unicode MS")  # fmt: skip
_STACKED_MARKS = re.compile("([\u0300-\u036f]{3})[\u0300-\u036f]+")
"""Marks above and below one letter, of which no language needs more: a tower of them leaves no room for the panel."""
_LABELS_BELOW = 16
"""Up to so many labels are written below a panel; more are thinned out."""
_LINE_HEIGHT = 0.2
"""Inches that a label takes beside a panel."""
_SINGLE_BARS = 32
"""More bars than that are drawn as one outline: the gaps would flicker, and thousands of bars take minutes."""
_SINGLE_POINTS = 32
"""Lines of more points have no markers."""
_LEGEND = 8
"""Entries of a legend where there are more series than colours and dashes."""
_MANY_CELLS, _TAIL = 2000, 0.001
"""The colours of so many cells leave out the tails, so that one large value does not make all others look alike."""
_LINKS = 20
"""Bands between two columns of nodes; the smaller ones would cover the picture."""
_NODE_GAPS, _NODE_LABELS = 0.15, 0.05
"""Shares of a panel's height: all gaps between nodes, a label."""
_NODE_POINTS = 6.0
_COLOR_BAR = 5.0
"""Inches of the scale of colours, at most."""

Numbers = NDArray[np.float64]


@cache
def fonts() -> tuple[str, ...]:
    """Matplotlib's own font, and those installed that know Chinese, Japanese and Korean."""
    installed = set(fontManager.get_font_names())
    return ("DejaVu Sans", *(name for name in _CJK_FONTS if name in installed))


@cache
def _known_characters() -> frozenset[int]:
    paths = [fontManager.findfont(name) for name in fonts()]
    return frozenset(code for path in paths for code in get_font(path).get_charmap())


def label(text: str, width: int = 24) -> str:
    """Text that the fonts can draw, cut to ``width``: a character without a glyph is spelled out, not a box."""
    known, text = _known_characters(), _STACKED_MARKS.sub(r"\1…", text)
    drawn = "".join(c if ord(c) in known else c.encode("unicode_escape").decode("ascii") for c in inert(text))
    return shorten(drawn, width)


def slant(names: tuple[str, ...]) -> float:
    """Inches below a panel for labels that are too long to stand side by side."""
    shown = _spread(len(names), _LABELS_BELOW)
    longest = max(len(label(names[place])) for place in shown)
    return 0.06 * longest if longest > 4 and len(shown) > 4 else 0.0


def draw_bars(axis: Axes, panel: Panel) -> None:
    """Standing bars; undefined ones have no height."""
    heights = np.nan_to_num(_numbers(panel.series[0][1]))
    if len(heights) <= _SINGLE_BARS:
        axis.bar(range(len(heights)), heights, color=_BLUE, width=0.9)
    else:
        axis.stairs(heights, np.arange(len(heights) + 1) - 0.5, fill=True, color=_BLUE)
    axis.grid(axis="y")
    _mark_reference(axis, panel.reference)
    _label_x(axis, panel.x)


def draw_lying_bars(axis: Axes, panel: Panel) -> None:
    """Bars from left to right below one another, with their names."""
    lengths = np.nan_to_num(_numbers(panel.series[0][1]))
    axis.barh(range(len(lengths)), lengths, color=_BLUE, height=0.75)
    axis.set_yticks(range(len(panel.x)), [label(name) for name in panel.x])
    axis.invert_yaxis()
    axis.grid(axis="x")
    _mark_reference(axis, panel.reference, upright=True)


def draw_lines(axis: Axes, panel: Panel) -> None:
    """A line per series; very many are coloured by their order, and the legend names some of them."""
    count = len(panel.series)
    ordered = count > len(_LINES) * len(_DASHES)
    marker = "o" if len(panel.x) <= _SINGLE_POINTS else ""
    named = set(np.linspace(0, count - 1, _LEGEND).round().astype(int)) if ordered else set(range(count))
    for index, (name, values) in enumerate(panel.series):
        color = colormaps["viridis"](0.9 * index / count) if ordered else _LINES[index % len(_LINES)]
        dash = "-" if ordered else _DASHES[index // len(_LINES)]
        entry = label(name) if index in named else None
        axis.plot(_numbers(values), dash, color=color, marker=marker, markersize=3, label=entry)
    axis.grid(axis="y")
    _mark_reference(axis, panel.reference)
    _label_x(axis, panel.x)
    if count > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def draw_points(axis: Axes, panel: Panel) -> None:
    """A dot per series, coloured by its name."""
    names = list(dict.fromkeys(name for name, _ in panel.series))
    for index, name in enumerate(names):
        points = np.array([_numbers(values) for other, values in panel.series if other == name])
        marker = _MARKERS[index // len(_LINES) % len(_MARKERS)]
        color = _LINES[index % len(_LINES)]
        axis.scatter(points[:, 0], points[:, 1], s=14, color=color, marker=marker, alpha=0.8, label=label(name))
    axis.grid()
    if len(names) > 1:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def draw_heatmaps(part: SubFigure, axes: Sequence[Axes], figure: Figure, height: float) -> None:
    """Shaded cells in panels of ``height`` inches, with one scale for all of them; undefined cells are grey."""
    values = np.concatenate([_numbers(row) for panel in figure.panels for _, row in panel.series])
    known, reference = values[~np.isnan(values)], figure.panels[0].reference
    norm, colors, extend = _scale(known, reference)
    for axis, panel in zip(axes, figure.panels, strict=True):
        axis.set_facecolor(_GREY)
        rows = np.array([_numbers(row) for _, row in panel.series])
        image = axis.imshow(rows, aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
        _label_x(axis, panel.x)
        shown = _spread(len(rows), int(height / _LINE_HEIGHT))
        axis.set_yticks(shown, [label(panel.series[place][0]) for place in shown])
    rows_of_panels = len({axis.get_position().y0 for axis in axes})
    shrink = min(1.0, _COLOR_BAR / (rows_of_panels * height))
    title = label(figure.y_title, 60)
    bar = part.colorbar(image, ax=axes, shrink=shrink, anchor=(0.0, 1.0), pad=0.02, label=title, extend=extend)
    if reference is not None and len(known) and known.min() >= reference < known.max():
        bar.ax.set_ylim(reference, None)  # the other hue is nowhere to be seen


def _scale(values: Numbers, reference: float | None) -> tuple[Normalize, str, Literal["neither", "min", "max", "both"]]:
    """Two hues that meet at the reference, or at zero where there are values on both sides; else one scale.

    Beside a positive reference of ratios and the like, the one hue is full at 0 and the other at twice the reference
    or above: 0.98 is as close to 1 in colour as 1.02, and half as much as usual can be seen beside ten times as much.
    """
    if not len(values):
        return Normalize(0.0, 1.0), "viridis", "neither"
    least, most = float(values.min()), float(values.max())
    low, high = (float(end) for end in np.quantile(values, (_TAIL, 1.0 - _TAIL)))
    if len(values) < _MANY_CELLS:
        low, high = least, most
    if reference is None and not low < 0.0 < high:
        norm, colors = Normalize(low, high), "viridis"
    else:
        centre = reference or 0.0
        reach = max(centre - low, high - centre) or 1.0
        ends = (0.0, max(high, 2.0 * centre)) if least >= 0.0 < centre else (centre - reach, centre + reach)
        norm, colors = TwoSlopeNorm(centre, *ends), "PuOr_r"
        low, high = ends
    below, above = least < low, most > high
    return norm, colors, ("both" if above else "min") if below else ("max" if above else "neither")


def draw_flows(axis: Axes, panel: Panel) -> None:
    """Nodes as high as their loads on both sides, the first on top, and bands as high as the largest flows."""
    flow = np.nan_to_num(np.array([_numbers(row) for _, row in panel.series]))
    flow = flow / (flow.sum() or 1.0) * (1.0 - _NODE_GAPS)
    # A band leaves its node where it would if all were drawn, in the order of the other side's nodes.
    starts = _draw_nodes(axis, flow.sum(axis=1), 0.0)[:, None] + np.cumsum(flow, axis=1) - flow
    stops = _draw_nodes(axis, flow.sum(axis=0), 1.0)[None, :] + np.cumsum(flow, axis=0) - flow
    largest = np.argsort(-flow, axis=None, kind="stable")[:_LINKS]
    lefts, rights = np.unravel_index(largest[flow.ravel()[largest] > 0.0], flow.shape)
    across = np.linspace(0.0, 1.0, 31)
    rise = across**2 * (3.0 - 2.0 * across)
    for i, j in zip(lefts, rights, strict=True):
        edge = starts[i, j] + (stops[i, j] - starts[i, j]) * rise
        strength = 0.25 + 0.5 * flow[i, j] / flow.max()
        axis.fill_between(across, edge, edge + flow[i, j], color=_BLUE, alpha=strength, linewidth=0.6)
    _label_nodes(axis, [name for name, _ in panel.series], starts[:, 0] + flow.sum(axis=1) / 2, lefts, right=False)
    _label_nodes(axis, panel.x, stops[0, :] + flow.sum(axis=0) / 2, rights, right=True)
    share = flow[lefts, rights].sum() / (flow.sum() or 1.0)
    axis.set_title(f"bands: {share * 100:.0f} % of all", loc="right", color="#666666", fontsize=7)
    axis.set_ylim(1.0, 0.0)
    axis.set_axis_off()


def _draw_nodes(axis: Axes, loads: Numbers, place: float) -> Numbers:
    """The upper ends of a column of nodes beside the bands."""
    gap = _NODE_GAPS / max(len(loads) - 1, 1)
    tops: Numbers = np.cumsum(loads + gap) - loads - gap
    axis.vlines(np.full(len(loads), place), tops, tops + loads, color="#444444", linewidth=_NODE_POINTS)
    return tops


def _label_nodes(axis: Axes, names: Sequence[str], middles: Numbers, linked: NDArray[np.intp], right: bool) -> None:
    """Name the nodes that have a band, those with the largest bands first, where there is room."""
    taken: list[float] = []
    for node in dict.fromkeys(linked.tolist()):
        if all(abs(middles[node] - other) >= _NODE_LABELS for other in taken):
            taken.append(middles[node])
            place, side = (1.06, "left") if right else (-0.06, "right")
            axis.text(place, middles[node], label(names[node], 12), ha=side, va="center", fontsize=7)


def _numbers(values: Sequence[float | None]) -> Numbers:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _mark_reference(axis: Axes, reference: float | None, upright: bool = False) -> None:
    if reference is None:
        return
    (axis.axvline if upright else axis.axhline)(reference, color=REFERENCE_COLOR, linestyle="--", linewidth=1.0)


def _spread(count: int, most: int) -> list[int]:
    """Places of the labels of ``count`` things: all of them, or round steps where there are more than ``most``."""
    if count <= most:
        return list(range(count))
    located = MaxNLocator(nbins=max(most // 3, 1), integer=True).tick_values(0, count - 1)
    return [int(place) for place in located if 0 <= place < count]


def _label_x(axis: Axes, names: tuple[str, ...]) -> None:
    shown = _spread(len(names), _LABELS_BELOW)
    labels = [label(names[place]) for place in shown]
    slanted = slant(names) > 0
    axis.set_xticks(shown, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axis.margins(x=0.01)
