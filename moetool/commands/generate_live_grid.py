"""The experts of one token in a terminal: the choices of every layer enter, a grid of cells in so many lines leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text

from moetool.report.page.palette import expert_color

if TYPE_CHECKING:
    from moetool.capture.trace import TraceLayer

LABEL_WIDTH = 8
"""Cells to the left of the grid: the numbers of one or two layers."""
_WIDEST_CELL = 6
_MOST_LINES = 3
"""Of one layer, where there is room; the last of several is a gap."""
_SHADES = "░▒▓█"


class Grid:
    """The choices of one token in so many columns and lines of a terminal; layers are those around ``selected``.

    A layer takes several lines where there is room, and two share a line where there are more layers than lines. A
    cell is one expert, or neighbours where there are more experts than cells; a larger weight is brighter.
    """

    def __init__(self, layers: Sequence[TraceLayer], selected: int, width: int, height: int) -> None:
        self.layers, self.selected = layers, selected
        self.halves = len(layers) > height
        self.tall = min(max(height // len(layers), 1), _MOST_LINES)
        shown = min(2 * height, len(layers))
        self.first = min(max(selected - shown // 2, 0), len(layers) - shown)
        self.last = self.first + shown - 1
        room = max(width - LABEL_WIDTH, 1)
        self.experts = max(layer.experts for layer in layers)
        self.merged = -(-self.experts // room)
        self.cell = min(max(room // self.experts, 1), _WIDEST_CELL)

    def legend(self) -> list[str]:
        """What it shows and how, the most important first."""
        layers, window = self.layers, self.last - self.first + 1 < len(self.layers)
        numbers = f"{layers[self.first].layer}-{layers[self.last].layer}"
        parts = [f"experts in layers {numbers} of {len(layers)}" if window else "experts by layer"]
        if self.halves:
            parts.append("2 a line ▀▄" if window else "2 layers a line ▀▄")
        if self.merged > 1:
            parts.append(f"{self.merged} experts a cell")
        return [*parts, "shade: weight" if self.halves else f"{_SHADES} weight"]

    def axis(self) -> Text:
        """One line of expert numbers: of as many cells as there is room for."""
        step = next(step for step in map((2).__pow__, range(32)) if step * self.cell > len(str(self.experts - 1)))
        spaced = f"{{:<{step * self.cell}}}".format
        numbers = "".join(map(spaced, range(0, self.experts, step * self.merged))).rstrip()
        columns = -(-self.experts // self.merged) * self.cell
        if len(numbers) > columns:  # a number that is cut would be another one
            numbers = numbers[: -len(numbers.split()[-1])].rstrip()
        return Text(f"{'expert':>{LABEL_WIDTH - 1}} {numbers}", "dim")

    def lines(self) -> list[Text]:
        """The layers from top to bottom."""
        rows = [(place, self._shares(self.layers[place])) for place in range(self.first, self.last + 1)]
        if self.halves:
            pairs = [rows[start : start + 2] for start in range(0, len(rows), 2)]
            return [self._label([place for place, _ in pair]) + self._half_row(pair) for pair in pairs]
        lines = []
        for place, shares in rows:
            row, blank = self._row(shares), Text(" " * LABEL_WIDTH)
            lines.append(self._label([place]) + row)
            lines += [blank + row] * (self.tall - 2) + [Text()] * (self.tall > 1)
        return lines

    def _shares(self, layer: TraceLayer) -> NDArray[Any]:
        """``[cells]`` weight of the last token's experts over its largest weight; 0 where none was chosen."""
        weight = np.ones(layer.experts_per_token) if layer.weight is None else np.abs(layer.weight[-1].astype(float))
        shares = np.zeros(-(-layer.experts // self.merged) * self.merged)
        shares[layer.chosen[-1]] = np.maximum(weight / max(weight.max(), 1e-9), 0.01)
        largest: NDArray[Any] = shares.reshape(-1, self.merged).max(axis=1)
        return largest

    def _label(self, places: Sequence[int]) -> Text:
        numbers = "-".join(str(self.layers[place].layer) for place in places)
        here = self.selected in places
        label = f"{'▸' if here else ' '}{numbers:>{LABEL_WIDTH - 2}} "
        return Text.assemble((label, "bold" if here else "dim"))  # as the style of a Text it would be that of the line

    def _row(self, shares: NDArray[Any]) -> Text:
        line = Text()
        for number, share in enumerate(shares.tolist()):
            shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
            self._append(line, number, shade if share else "", 1.0)
        return line

    def _half_row(self, pair: Sequence[tuple[int, NDArray[Any]]]) -> Text:
        """Two layers in one line, the second one possibly missing."""
        upper = pair[0][1].tolist()
        lower = pair[1][1].tolist() if len(pair) > 1 else [0.0] * len(upper)
        both = zip(upper + [0.0] * (len(lower) - len(upper)), lower + [0.0] * (len(upper) - len(lower)), strict=True)
        line = Text()
        for number, (above, below) in enumerate(both):
            block = "█" if above and below else "▀" if above else "▄" if below else ""
            self._append(line, number, block, max(above, below))
        return line

    def _append(self, line: Text, number: int, block: str, strength: float) -> None:
        """One cell, with a gap behind it where cells are wide; without a block, nothing was chosen."""
        gap = " " * (self.cell > 1)
        size = self.cell - len(gap)
        if block:
            line.append(block * size + gap, Style(color=expert_color(number * self.merged, strength)))
        else:
            line.append("·".center(size) + gap, "dim")
