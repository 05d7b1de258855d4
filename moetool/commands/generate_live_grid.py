"""The experts of one token in a terminal: the choices of every layer enter, a grid of cells in so many lines leaves."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from moetool.capture.trace import TraceLayer

LABEL_WIDTH = 8
"""Cells to the left of the grid: the numbers of one or two layers."""
_WIDEST_CELL = 4
_SHADES = "░▒▓█"
_GOLDEN_ANGLE = 137.508
"""Degrees between the hues of neighbouring experts: any few of them are far apart."""


def expert_color(expert: int, lightness: float = 0.62) -> str:
    """``#rrggbb``; the page has the same hues."""
    parts = colorsys.hls_to_rgb(expert * _GOLDEN_ANGLE % 360 / 360, lightness, 0.75)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)


def draw_grid(layers: Sequence[TraceLayer], selected: int, width: int, height: int) -> list[Text]:
    """At most ``height`` lines for the last token of ``layers``, which are those around ``selected`` if not all fit.

    A line is one layer, or two halves of a cell where there are more layers than lines. A cell is one expert, or
    neighbours where there are more experts than cells; it is as dark as its largest weight is light.
    """
    halves = len(layers) > height
    lines = min(-(-len(layers) // 2) if halves else len(layers), height)
    shown = lines * (2 if halves else 1)
    first = min(max(selected - shown // 2, 0), max(len(layers) - shown, 0))
    cells = max(width - LABEL_WIDTH, 1)
    most = max(layer.experts for layer in layers)
    merged = -(-most // cells)
    cell = min(max(cells // most, 1), _WIDEST_CELL)
    rows = [(place, _shares(layer, merged)) for place, layer in enumerate(layers)][first : first + shown]
    if not halves:
        return [_label(layers, [place], selected) + _row(shares, merged, cell) for place, shares in rows]
    pairs = [rows[start : start + 2] for start in range(0, len(rows), 2)]
    return [_label(layers, [place for place, _ in pair], selected) + _half_row(pair, merged, cell) for pair in pairs]


def _shares(layer: TraceLayer, merged: int) -> NDArray[Any]:
    """``[cells]`` weight of the last token's experts over its largest weight; 0 where none was chosen."""
    weight = np.ones(layer.experts_per_token) if layer.weight is None else np.abs(layer.weight[-1].astype(float))
    shares = np.zeros(-(-layer.experts // merged) * merged)
    shares[layer.chosen[-1]] = np.maximum(weight / max(weight.max(), 1e-9), 0.01)
    largest: NDArray[Any] = shares.reshape(-1, merged).max(axis=1)
    return largest


def _label(layers: Sequence[TraceLayer], places: Sequence[int], selected: int) -> Text:
    numbers = "-".join(str(layers[place].layer) for place in places)
    here = selected in places
    return Text(f"{'▸' if here else ' '}{numbers:>{LABEL_WIDTH - 2}} ", "bold" if here else "dim")


def _row(shares: NDArray[Any], merged: int, cell: int) -> Text:
    line, gap = Text(), " " * (cell > 1)
    for number, share in enumerate(shares.tolist()):
        if share:
            shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
            line.append(shade * (cell - len(gap)) + gap, _lit(number * merged, share))
        else:
            line.append("·" * (cell - len(gap)) + gap, "dim")
    return line


def _half_row(pair: Sequence[tuple[int, NDArray[Any]]], merged: int, cell: int) -> Text:
    """Two layers in one line, the second one possibly missing."""
    line, gap = Text(), " " * (cell > 1)
    upper = pair[0][1].tolist()
    lower = pair[1][1].tolist() if len(pair) > 1 else [0.0] * len(upper)
    both = zip(upper + [0.0] * (len(lower) - len(upper)), lower + [0.0] * (len(upper) - len(lower)), strict=True)
    for number, (above, below) in enumerate(both):
        color = expert_color(number * merged)
        if above and below:
            line.append("█" * (cell - len(gap)) + gap, color)
        elif above or below:
            line.append(("▀" if above else "▄") * (cell - len(gap)) + gap, _lit(number * merged, above or below))
        else:
            line.append("·" * (cell - len(gap)) + gap, "dim")
    return line


def _lit(expert: int, share: float) -> Style:
    """The expert's colour, darker for a small weight."""
    return Style(color=expert_color(expert, 0.35 + 0.3 * share))
