"""Figures as text: a Figure enters, lines of block characters leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import floor, log10

from moetool.report.report import Figure, Panel
from moetool.report.values import cell_width, inert, shorten, write_value

_HEIGHTS = "▁▂▃▄▅▆▇█"
_WIDTHS = " ▏▎▍▌▋▊▉█"
_SHADES = "·░▒▓█"
_ZERO, _UNDEFINED = "·", "?"
_LABELLED_BARS = 30
"""Up to so many bars in a single panel get a line each, with their labels."""
_LABEL_WIDTH = 24
_CHART_BARS, _CHART_PANELS, _CHART_WIDTH = 16, 8, 30
"""Up to so many bars in so many panels are drawn as charts of at least this width, side by side."""
_CHART_GAP = 4
_MARK = "│"
_NUMBER_WIDTH = 7
"""A heatmap whose cells are this wide says its values, too."""

Row = tuple[str, tuple[float | None, ...]]


def draw(figure: Figure, width: int) -> list[str]:
    """The figure in lines of ``width`` cells and a legend; one scale for all panels, so that they can be compared."""
    values = [value for panel in figure.panels for _, row in panel.series for value in row if value is not None]
    if not values:
        return ["Nothing to draw: every value is undefined."]
    if figure.kind == "heatmap":
        low, high = min(values), max(values)
        lines = [line for panel in figure.panels for line in _heatmap(panel, figure.x_title, low, high, width)]
        return [*lines, _legend(figure, _SHADES, low, high)]
    most = max(len(panel.x) for panel in figure.panels)
    if figure.kind == "bars" and len(figure.panels) == 1 and most <= _LABELLED_BARS:
        return list(_labelled_bars(figure, max(0.0, *values), width))
    if figure.kind == "bars" and len(figure.panels) <= _CHART_PANELS and most <= _CHART_BARS:
        return list(_charts(figure, max(0.0, *values), width))
    return _sparklines(figure, min(0.0, *values), max(0.0, *values), width)


def _legend(figure: Figure, characters: str, low: float, high: float, merged: int = 1) -> str:
    """What the characters mean: one sentence below a figure."""
    flat = {value for panel in figure.panels for _, row in panel.series for value in row}
    references = {panel.reference for panel in figure.panels if panel.reference is not None}
    unit = "" if figure.kind == "heatmap" else inert(figure.y_title)
    parts = [f"{characters[0]} to {characters[-1]}: {_short(low)} to {_short(high)} {unit}".strip()]
    parts += [f"{_ZERO} zero"] * (0 in flat and not low and characters == _HEIGHTS)
    parts += [f"{_UNDEFINED} undefined"] * (None in flat)
    parts += [f"reference {_short(value)}" for value in references if len(references) == 1]
    parts += [f"a character is the largest of {merged} neighbours"] * (merged > 1)
    return "; ".join(parts)


def _short(value: float) -> str:
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e3 else write_value(float(value), "number")


def _labelled_bars(figure: Figure, high: float, width: int) -> Iterator[str]:
    panel = figure.panels[0]
    titles = [inert(title) for title in (panel.title, figure.x_title, figure.y_title) if title]
    if titles:
        yield ", ".join(titles)
    labels = [shorten(label, _LABEL_WIDTH) for label in panel.x]
    label_width = max(map(cell_width, labels))
    numbers = ["undefined" if value is None else _short(value) for value in panel.series[0][1]]
    space = max(width - label_width - max(map(len, numbers)) - 2, 8)
    for label, value, number in zip(labels, panel.series[0][1], numbers, strict=True):
        bar = _bar(value, high, space)
        yield f"{_pad(label, label_width)} {bar}{' ' * bool(bar)}{number}"
    if panel.reference is not None:
        yield f"reference {_short(panel.reference)}"


def _bar(value: float | None, high: float, space: int) -> str:
    eighths = round(max(value or 0.0, 0.0) / (high or 1.0) * space * 8)
    return _WIDTHS[8] * (eighths // 8) + _WIDTHS[eighths % 8].strip()


def _charts(figure: Figure, high: float, width: int) -> Iterator[str]:
    """A chart of lying bars per panel, as many side by side as fit; the reference is a line through the bars."""
    beside = max((width + _CHART_GAP) // (_CHART_WIDTH + _CHART_GAP), 1)
    rows = -(-len(figure.panels) // beside)
    beside = -(-len(figure.panels) // rows)
    space = (width + _CHART_GAP) // beside - _CHART_GAP
    labels = max(min(cell_width(inert(x)), _CHART_WIDTH // 3) for panel in figure.panels for x in panel.x)
    for start in range(0, len(figure.panels), beside):
        charts = [list(_chart(panel, high, labels, space)) for panel in figure.panels[start : start + beside]]
        for parts in zip_longest(*charts, fillvalue=""):
            yield (" " * _CHART_GAP).join(_pad(part, space) for part in parts).rstrip()
    marks = {panel.reference for panel in figure.panels if panel.reference is not None}
    mark = "the reference" if len(marks) > 1 else "".join(map(_short, marks))
    bars = " per ".join(inert(title) for title in (figure.y_title, figure.x_title) if title)
    missing = any(None in panel.series[0][1] for panel in figure.panels)
    parts = (bars, f"{_MARK} marks {mark}" * bool(marks), f"{_UNDEFINED} undefined" * missing)
    yield "; ".join(part for part in parts if part)


def _chart(panel: Panel, high: float, label_width: int, width: int) -> Iterator[str]:
    yield shorten(panel.title, width)
    numbers = [_UNDEFINED if value is None else _fixed(value, high) for value in panel.series[0][1]]
    number_width = max(map(len, numbers))
    space = max(width - label_width - number_width - 2, 8)
    top = max(high, panel.reference or 0.0)
    place = None if panel.reference is None else min(round(panel.reference / (top or 1.0) * space), space - 1)
    for x, value, number in zip(panel.x, panel.series[0][1], numbers, strict=True):
        bar = _bar(value, top, space).ljust(space)
        if place is not None:
            bar = f"{bar[:place]}{_MARK}{bar[place + 1 :]}"
        label = shorten(x, label_width)
        yield f"{' ' * (label_width - cell_width(label))}{label} {bar} {number:>{number_width}}"


def _fixed(value: float, high: float) -> str:
    """The value with the decimals that show three digits of the largest one."""
    decimals = 2 - floor(log10(high)) if high > 0 else 0
    return f"{value:,.{decimals}f}" if value and 0 <= decimals <= 4 else _short(value)


def _sparklines(figure: Figure, low: float, high: float, width: int) -> list[str]:
    """One line per series: its label, one character per x, its largest value."""
    rows = [(_series_label(figure, panel, name), row) for panel in figure.panels for name, row in panel.series]
    labels = [shorten(label, _LABEL_WIDTH) for label, _ in rows]
    peaks = [_peak(row) for _, row in rows]
    label_width = max(map(cell_width, labels))
    peak_width = max(3, *map(len, peaks))
    space = max(width - label_width - peak_width - 2, 8)
    merged = max(1, *(-(-len(row) // space) for _, row in rows))
    drawn = [_sparkline(_merge(row, merged), low, high) for _, row in rows]
    length = max(map(len, drawn))
    same = all(panel.x == figure.panels[0].x for panel in figure.panels)
    title = _pad(shorten(figure.x_title, label_width), label_width)
    lines = [f"{title} {_ends(figure.panels[0].x if same else ('', ''), length)} {'max':>{peak_width}}"]
    for label, row, peak in zip(labels, drawn, peaks, strict=True):
        lines.append(f"{_pad(label, label_width)} {row.ljust(length)} {peak:>{peak_width}}")
    return [*lines, _legend(figure, _HEIGHTS, low, high, merged)]


def _ends(x: Sequence[str], length: int) -> str:
    """The first and the last x at the two ends of ``length`` cells, where there is room for them."""
    first, last = shorten(x[0], _LABEL_WIDTH), shorten(x[-1], _LABEL_WIDTH)
    if cell_width(first) + cell_width(last) >= length:
        return " " * length
    return f"{_pad(first, length - cell_width(last))}{last}"


def _series_label(figure: Figure, panel: Panel, name: str) -> str:
    if len(panel.series) == 1:
        return panel.title or name
    return f"{panel.title} {name}" if len(figure.panels) > 1 else name


def _sparkline(row: Sequence[float | None], low: float, high: float) -> str:
    def character(value: float | None) -> str:
        if value is None:
            return _UNDEFINED
        if value == 0 and not low:
            return _ZERO
        return _HEIGHTS[min(int((value - low) / ((high - low) or 1.0) * len(_HEIGHTS)), len(_HEIGHTS) - 1)]

    return "".join(map(character, row))


def _merge(row: Sequence[float | None], count: int) -> list[float | None]:
    """The largest of each ``count`` neighbours, so that a peak is never lost."""
    groups = (row[start : start + count] for start in range(0, len(row), count))
    return [max((value for value in group if value is not None), default=None) for group in groups]


def _peak(row: Sequence[float | None]) -> str:
    known = [value for value in row if value is not None]
    return _short(max(known)) if known else _UNDEFINED


def _heatmap(panel: Panel, x_title: str, low: float, high: float, width: int) -> Iterator[str]:
    """Rows of shades below their headings, or below the first and the last of them."""
    names = [shorten(name, _LABEL_WIDTH) for name, _ in panel.series]
    title = shorten(x_title, _LABEL_WIDTH)
    label_width = max(map(cell_width, [title, *names]))
    space = max(width - label_width - 1, 8)
    merged = -(-len(panel.x) // space)
    columns = -(-len(panel.x) // merged)
    cell = max(min(space // columns, 8), 1)
    if panel.title:
        yield inert(panel.title)
    labels = [inert(label) for label in panel.x]
    if merged == 1 and max(map(cell_width, labels)) < cell:
        heading = "".join(_pad(label, cell) for label in labels)
    else:
        heading = _ends(panel.x, columns * cell)
    yield f"{_pad(title, label_width)} {heading}".rstrip()
    for name, (_, row) in zip(names, panel.series, strict=True):
        shades = (_cell(value, low, high, cell, panel.reference) for value in _merge(row, merged))
        yield f"{_pad(name, label_width)} {''.join(shades)}".rstrip()
    if merged > 1:
        yield f"a character is the largest of {merged} neighbours"


def _cell(value: float | None, low: float, high: float, width: int, reference: float | None) -> str:
    """A shade, and where there is room the value: a shade alone stands for a fifth of the scale."""
    shade = _shade(value, low, high)
    if reference == low != value and shade == _SHADES[0]:
        # What differs from the reference looks different, however little.
        shade = _SHADES[1]
    number = "" if value in (None, reference) else _fixed(value or 0.0, max(abs(low), abs(high)))
    if width < _NUMBER_WIDTH or len(number) > width - 3:
        return shade * width
    return f"{shade}{shade}{number}".ljust(width)


def _shade(value: float | None, low: float, high: float) -> str:
    if value is None:
        return _UNDEFINED
    return _SHADES[min(int((value - low) / ((high - low) or 1.0) * len(_SHADES)), len(_SHADES) - 1)]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - cell_width(text))
