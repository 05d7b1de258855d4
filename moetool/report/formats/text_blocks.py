"""Bars and sparklines of block characters: a Figure and a width in cells enter, lines of text leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import floor, log10

from moetool.report.report import Figure, Panel
from moetool.report.values import cell_width, inert, shorten, write_value

HEIGHTS = "▁▂▃▄▅▆▇█"
LABEL_WIDTH = 24
UNDEFINED = "?"
GAP = 4
"""Cells between panels that stand side by side."""
_WIDTHS = " ▏▎▍▌▋▊▉█"
_ZERO = "·"
_CHART_WIDTH = 30
"""Charts are at least so wide where several of them stand side by side."""
_MARK = "│"


def short_number(value: float) -> str:
    """Three digits where a plain number has room for them, human units elsewhere."""
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e3 else write_value(float(value), "number")


def fixed_number(value: float, high: float) -> str:
    """The value with the decimals that show three digits of the largest one."""
    decimals = 2 - floor(log10(high)) if high > 0 else 0
    # Adding 0 makes -0.001 of two decimals 0.00, not -0.00.
    return f"{round(value, decimals) + 0:,.{decimals}f}" if value and 0 <= decimals <= 6 else short_number(value)


def pad(text: str, width: int) -> str:
    """The text and as many spaces as fill ``width`` cells."""
    return text + " " * (width - cell_width(text))


def ends(x: Sequence[str], length: int) -> str:
    """The first and the last x at the two ends of ``length`` cells, where there is room for them."""
    first, last = shorten(x[0], LABEL_WIDTH), shorten(x[-1], LABEL_WIDTH)
    if len(x) == 1 or cell_width(first) + cell_width(last) >= length:
        return pad(shorten(first, length), length)
    return f"{pad(first, length - cell_width(last))}{last}"


def evenly(count: int, most: int) -> list[int]:
    """Places of ``most`` of ``count`` things, the first and the last among them; all where there are no more."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def left_out(count: int, shown: int, things: str) -> list[str]:
    """A sentence where not all of ``count`` things are drawn."""
    sentence = f"Drawn: {shown} of {count} {things}, evenly spaced; --save FILE.svg draws them all."
    return [sentence] * (shown < count)


def merge(row: Sequence[float | None], count: int) -> list[float | None]:
    """The largest of each ``count`` neighbours, so that a peak is never lost."""
    groups = (row[start : start + count] for start in range(0, len(row), count))
    return [max((value for value in group if value is not None), default=None) for group in groups]


def legend(figure: Figure, characters: str, low: float, high: float, merged: int = 1) -> str:
    """What the characters mean: one sentence below a figure."""
    flat = {value for panel in figure.panels for _, row in panel.series for value in row}
    references = {panel.reference for panel in figure.panels if panel.reference is not None}
    scale = f"{characters[0]} to {characters[-1]}: {short_number(low)} to {short_number(high)}"
    parts = [f"{scale} {inert(figure.y_title)}".strip()]
    parts += [f"{_ZERO} zero"] * (0 in flat and not low and characters == HEIGHTS)
    parts += [f"{UNDEFINED} undefined"] * (None in flat)
    parts += [f"reference {short_number(value)}" for value in references if len(references) == 1]
    parts += [f"a character is the largest of {merged} neighbours"] * (merged > 1)
    return "; ".join(parts)


def side_by_side(blocks: Sequence[Sequence[str]], beside: int, width: int) -> Iterator[str]:
    """Blocks of lines of at most ``width`` cells, ``beside`` of them to a row."""
    for start in range(0, len(blocks), beside):
        for parts in zip_longest(*blocks[start : start + beside], fillvalue=""):
            yield (" " * GAP).join(pad(part, width) for part in parts).rstrip()


def labelled_bars(figure: Figure, high: float, width: int) -> Iterator[str]:
    """A line per bar of the only panel: its label, the bar, its value."""
    panel = figure.panels[0]
    titles = [inert(title) for title in (panel.title, figure.x_title, figure.y_title) if title]
    if titles:
        yield ", ".join(titles)
    labels = [shorten(label, max(LABEL_WIDTH, width // 3)) for label in panel.x]
    label_width = max(map(cell_width, labels))
    numbers = ["undefined" if value is None else short_number(value) for value in panel.series[0][1]]
    space = max(width - label_width - max(map(len, numbers)) - 2, 4)
    for label, value, number in zip(labels, panel.series[0][1], numbers, strict=True):
        bar = _bar(value, high, space)
        yield f"{pad(label, label_width)} {bar}{' ' * bool(bar)}{number}"
    if panel.reference is not None:
        yield f"reference {short_number(panel.reference)}"


def charts_beside(width: int) -> int:
    """How many charts fit side by side into ``width`` cells."""
    return max((width + GAP) // (_CHART_WIDTH + GAP), 1)


def charts(figure: Figure, high: float, width: int) -> Iterator[str]:
    """A chart of lying bars per panel, as many side by side as fit; the reference is a line through the bars."""
    rows = -(-len(figure.panels) // charts_beside(width))
    beside = -(-len(figure.panels) // rows)
    space = (width + GAP) // beside - GAP
    labels = max(min(cell_width(inert(x)), space // 3) for panel in figure.panels for x in panel.x)
    yield from side_by_side([list(_chart(panel, high, labels, space)) for panel in figure.panels], beside, space)
    marks = {panel.reference for panel in figure.panels if panel.reference is not None}
    mark = "the reference" if len(marks) > 1 else "".join(map(short_number, marks))
    bars = " per ".join(inert(title) for title in (figure.y_title, figure.x_title) if title)
    missing = any(None in panel.series[0][1] for panel in figure.panels)
    parts = (bars, f"{_MARK} marks {mark}" * bool(marks), f"{UNDEFINED} undefined" * missing)
    yield "; ".join(part for part in parts if part)


def _chart(panel: Panel, high: float, label_width: int, width: int) -> Iterator[str]:
    yield shorten(panel.title, width)
    numbers = [UNDEFINED if value is None else fixed_number(value, high) for value in panel.series[0][1]]
    number_width = max(map(len, numbers))
    space = max(width - label_width - number_width - 2, 4)
    top = max(high, panel.reference or 0.0)
    place = None if panel.reference is None else round(panel.reference / (top or 1.0) * space)
    for x, value, number in zip(panel.x, panel.series[0][1], numbers, strict=True):
        bar = _bar(value, top, space).ljust(space)
        if place is not None and place >= 0:
            place = min(place, space - 1)
            bar = f"{bar[:place]}{_MARK}{bar[place + 1 :]}"
        label = shorten(x, label_width)
        yield f"{' ' * (label_width - cell_width(label))}{label} {bar} {number:>{number_width}}"


def _bar(value: float | None, high: float, space: int) -> str:
    eighths = round(max(value or 0.0, 0.0) / (high or 1.0) * space * 8)
    return _WIDTHS[8] * (eighths // 8) + _WIDTHS[eighths % 8].strip()


def sparklines(figure: Figure, low: float, high: float, width: int, most: int) -> list[str]:
    """One line for each of at most ``most`` series: its label, a character per x, its smallest and largest value."""
    every = [(_series_label(figure, panel, name), row) for panel in figure.panels for name, row in panel.series]
    rows = [every[place] for place in evenly(len(every), most)]
    labels = [shorten(label, min(LABEL_WIDTH, width // 3)) for label, _ in rows]
    label_width = max(map(cell_width, labels))
    longest = max(len(row) for _, row in rows)
    # The smallest values are left out where that keeps a character per x.
    numbers, merged = min(
        ((lines, -(-longest // max(width - label_width - len(lines[0]) - 2, 4))) for lines in _extremes(rows)),
        key=lambda option: option[1] > 1,
    )
    drawn = [_sparkline(merge(row, merged), low, high) for _, row in rows]
    length = max(map(len, drawn))
    same = all(panel.x == figure.panels[0].x for panel in figure.panels)
    heading = ends(figure.panels[0].x, length) if same else " " * length
    titles = [shorten(figure.x_title, label_width), *labels]
    lines = [
        f"{pad(label, label_width)} {pad(row, length)} {ending}"
        for label, row, ending in zip(titles, [heading, *drawn], numbers, strict=True)
    ]
    series = "panels" if len(figure.panels) == len(every) else "series"
    return [*lines, legend(figure, HEIGHTS, low, high, merged), *left_out(len(every), len(rows), series)]


def _series_label(figure: Figure, panel: Panel, name: str) -> str:
    if len(panel.series) == 1:
        return panel.title or name
    return f"{panel.title} {name}" if len(figure.panels) > 1 else name


def _sparkline(row: Sequence[float | None], low: float, high: float) -> str:
    def character(value: float | None) -> str:
        if value is None:
            return UNDEFINED
        if value == 0 and not low:
            return _ZERO
        return HEIGHTS[min(int((value - low) / ((high - low) or 1.0) * len(HEIGHTS)), len(HEIGHTS) - 1)]

    return "".join(map(character, row))


def _extremes(rows: Sequence[tuple[str, Sequence[float | None]]]) -> Iterator[list[str]]:
    """Smallest and largest values below their headings, then the largest values alone."""
    known = [[value for value in row if value is not None] for _, row in rows]
    columns = []
    for title, extreme in (("min", min), ("max", max)):
        cells = [title, *(short_number(extreme(values)) if values else UNDEFINED for values in known)]
        column_width = max(map(len, cells))
        columns.append([f"{cell:>{column_width}}" for cell in cells])
    yield [" ".join(pair) for pair in zip(*columns, strict=True)]
    yield columns[1]
