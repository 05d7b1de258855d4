"""Figures as text: a Figure and a width in cells enter, about two dozen lines of characters leave.

A figure that is too large is drawn in part, and a sentence says so: some of its panels or rows, or its largest cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import floor

from moetool.report.formats.text_blocks import (
    GAP,
    LABEL_WIDTH,
    UNDEFINED,
    charts,
    charts_beside,
    ends,
    evenly,
    fixed_number,
    labelled_bars,
    left_out,
    legend,
    merge,
    pad,
    short_number,
    side_by_side,
    sparklines,
)
from moetool.report.report import Figure, Panel
from moetool.report.values import cell_width, inert, shorten

_MOST_LINES = 24
_MOST_ROWS = 20
"""Rows of a figure whose heading, legend and sentences take the other lines."""
_LABELLED_BARS = 30
"""Up to so many bars in a single panel get a line each, with their labels."""
_CHART_ROWS = 4
"""Charts below one another where the largest cells of many panels are shown."""
_LINK, _PAIR = " → ", ", "
_SHADES = "·░▒▓█"
_NUMBER_WIDTH = 7
"""A heatmap whose cells are this wide says its values, too."""
_MARKS, _SEVERAL, _REFERENCE = "ox+#@%&$", "*", "-"
_PLOT_HEIGHT = 11
"""Odd, so that there is a row for the middle of the scale."""
_STEP = 8
"""Cells between two points of a plot, at most."""


def draw(figure: Figure, width: int) -> list[str]:
    """The figure in lines of ``width`` cells and a legend; one scale for all panels, so that they can be compared."""
    values = [value for panel in figure.panels for _, row in panel.series for value in row if value is not None]
    if not values:
        return ["Nothing to draw: every value is undefined."]
    if figure.kind == "points":
        return ["Drawn by --save FILE.png and FILE.svg."]
    if figure.kind == "flows":
        return _largest(figure, width)
    if figure.kind == "heatmap":
        return _heatmaps(figure, min(values), max(values), width)
    if figure.kind == "lines" and len(figure.panels) == 1 and len(figure.panels[0].series) <= len(_MARKS):
        return list(_plot(figure, values, width))
    if figure.kind == "bars" and len(figure.panels) == 1 and len(figure.panels[0].x) <= _LABELLED_BARS:
        return list(labelled_bars(figure, max(0.0, *values), width))
    chart_lines = -(-len(figure.panels) // charts_beside(width)) * (1 + max(len(panel.x) for panel in figure.panels))
    if figure.kind == "bars" and chart_lines < _MOST_LINES:
        return list(charts(figure, max(0.0, *values), width))
    return sparklines(figure, min(0.0, *values), max(0.0, *values), width, _MOST_ROWS)


def _largest(figure: Figure, width: int) -> list[str]:
    """The largest cells of panels that are matrices, as bars."""
    beside = charts_beside(width)
    places = evenly(len(figure.panels), beside * _CHART_ROWS)
    most = _MOST_ROWS // -(-len(places) // beside) - 1
    sign, what = (_LINK, "links") if figure.kind == "flows" else (_PAIR, "cells")
    panels = [panel for panel in (_largest_cells(figure.panels[place], sign, most) for place in places) if panel.x]
    if not panels:
        return ["Nothing to draw: every value is zero or undefined."]
    high = max(0.0, *(value or 0.0 for panel in panels for value in panel.series[0][1]))
    lines = charts(replace(figure, kind="bars", panels=tuple(panels), x_title=""), high, width)
    return [*lines, f"The {most} largest {what} of each panel.", *left_out(len(figure.panels), len(places), "panels")]


def _largest_cells(panel: Panel, sign: str, most: int) -> Panel:
    """A panel of bars, the largest first; a symmetric matrix has each of its pairs once."""
    names, rows = zip(*panel.series, strict=True)
    symmetric = names == panel.x and rows == tuple(zip(*rows, strict=True)) and sign == _PAIR
    cells = [
        (value, f"{name}{sign}{panel.x[column]}")
        for number, (name, row) in enumerate(panel.series)
        for column, value in enumerate(row)
        if value and (column > number or not symmetric)
    ]
    cells = sorted(cells, key=lambda cell: -cell[0])[:most]
    bars = ("", tuple(value for value, _ in cells))
    return replace(panel, x=tuple(label for _, label in cells), series=(bars,))


def _heatmaps(figure: Figure, low: float, high: float, width: int) -> list[str]:
    """All panels where they fit, as wide as they can be; else some rows of the only one, or the largest cells."""
    panels = figure.panels
    rows, columns = max(len(panel.series) for panel in panels), max(len(panel.x) for panel in panels)
    names = [figure.x_title, *(name for panel in panels for name, _ in panel.series)]
    narrowest = max(cell_width(shorten(name, LABEL_WIDTH)) for name in names) + 1 + 2 * columns
    most_beside = max((width + GAP) // (narrowest + GAP), 1)
    beside = next(
        (count for count in range(1, most_beside + 1) if -(-len(panels) // count) * (rows + 2) <= _MOST_LINES), 0
    )
    if len(panels) > 1 and not beside:
        return _largest(figure, width)
    beside = beside or 1
    space = (width + GAP) // beside - GAP
    merged = max(-(-columns // max(space - narrowest + 2 * columns, 4)), 1)
    drawn = [list(_heatmap(panel, figure.x_title, low, high, space, merged)) for panel in panels]
    lines = list(side_by_side(drawn, beside, space))
    return [
        *lines,
        legend(figure, _SHADES, low, high, merged),
        *left_out(rows, min(rows, _MOST_ROWS), "rows"),
    ]


def _heatmap(panel: Panel, x_title: str, low: float, high: float, width: int, merged: int) -> Iterator[str]:
    """Rows of shades below their headings, or below the first and the last of them."""
    rows = [panel.series[place] for place in evenly(len(panel.series), _MOST_ROWS)]
    names = [shorten(name, LABEL_WIDTH) for name, _ in rows]
    title = shorten(x_title, LABEL_WIDTH)
    label_width = max(map(cell_width, [title, *names]))
    columns = -(-len(panel.x) // merged)
    cell = max(min((width - label_width - 1) // columns, 8), 1)
    if panel.title:
        yield shorten(panel.title, width)
    labels = [inert(label) for label in panel.x]
    if merged == 1 and max(map(cell_width, labels)) < cell:
        heading = "".join(pad(label, cell) for label in labels)
    else:
        heading = ends(panel.x, columns * cell)
    yield f"{pad(title, label_width)} {heading}".rstrip()
    for name, (_, row) in zip(names, rows, strict=True):
        shades = (_cell(value, low, high, cell, panel.reference) for value in merge(row, merged))
        yield f"{pad(name, label_width)} {''.join(shades)}".rstrip()


def _cell(value: float | None, low: float, high: float, width: int, reference: float | None) -> str:
    """A shade, and where there is room the value: a shade alone stands for a fifth of the scale."""
    shade = _shade(value, low, high)
    if reference == low != value and shade == _SHADES[0]:
        # What differs from the reference looks different, however little.
        shade = _SHADES[1]
    number = "" if value in (None, reference) else fixed_number(value or 0.0, max(abs(low), abs(high)))
    if width < _NUMBER_WIDTH or len(number) > width - 3:
        return shade * width
    return f"{shade}{shade}{number}".ljust(width)


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None:
        return UNDEFINED
    return _SHADES[min(int((value - low) / ((high - low) or 1.0) * len(_SHADES)), len(_SHADES) - 1)]


def _plot(figure: Figure, values: Sequence[float], width: int) -> Iterator[str]:
    """Points above an axis, a mark per series; between two x they are interpolated."""
    (panel,) = figure.panels
    scale = [*values, *([] if panel.reference is None else [panel.reference])]
    low, high = min(scale), max(scale)
    numbers = {0: short_number(high), _PLOT_HEIGHT // 2: short_number((low + high) / 2)}
    numbers[_PLOT_HEIGHT - 1] = short_number(low)
    label_width = max(map(len, numbers.values()))
    columns = max(min(width - label_width - 2, (len(panel.x) - 1) * _STEP + 1), 1)
    if figure.y_title:
        yield inert(figure.y_title)
    grid = _grid(panel, low, high, columns)
    for number, row in enumerate(grid):
        yield f"{numbers.get(number, ''):>{label_width}} {'┤' if number in numbers else '│'}{row}".rstrip()
    yield f"{' ' * label_width} └{'─' * columns}"
    yield f"{' ' * label_width}  {ends(panel.x, columns)}".rstrip()
    marks = [f"across: {inert(figure.x_title)}"] * bool(figure.x_title)
    marks += [f"{mark} {shorten(name, LABEL_WIDTH)}" for mark, (name, _) in zip(_MARKS, panel.series, strict=False)]
    marks += [f"{_SEVERAL} several of them"] * any(_SEVERAL in row for row in grid)
    marks += [f"{_REFERENCE} reference {short_number(panel.reference)}"] if panel.reference is not None else []
    yield "; ".join(marks)


def _grid(panel: Panel, low: float, high: float, columns: int) -> list[str]:
    """The rows of a plot from the highest to the lowest."""

    def row_of(value: float) -> int:
        return round((high - value) / ((high - low) or 1.0) * (_PLOT_HEIGHT - 1))

    grid = [[" "] * columns for _ in range(_PLOT_HEIGHT)]
    if panel.reference is not None:
        grid[row_of(panel.reference)] = [_REFERENCE] * columns
    for mark, (_, values) in zip(_MARKS, panel.series, strict=False):
        for column in range(columns):
            value = _between(values, column * (len(values) - 1) / max(columns - 1, 1))
            if value is not None:
                row = grid[row_of(value)]
                row[column] = mark if row[column] in (" ", _REFERENCE) else _SEVERAL
    return ["".join(row) for row in grid]


def _between(values: Sequence[float | None], place: float) -> float | None:
    """The value at a place between two indices; None where a value that it depends on is undefined."""
    first = floor(place)
    share = place - first
    before, after = values[first], values[first + (share > 0)]
    return None if before is None or after is None else before + share * (after - before)
