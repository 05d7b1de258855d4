"""The terminal while a model writes: its steps enter, a picture of the routing that fills the screen leaves (rich).

From top to bottom: the text in the colours of its first experts, the chosen experts of the newest token by layer, the
router's distribution in one layer beside what has been used so far.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from moetool.commands.generate_live_grid import Grid
from moetool.report.page.palette import expert_color
from moetool.report.values import cell_width, inert, shorten, write_value
from moetool.statistics.locality import first_choice

if TYPE_CHECKING:
    from moetool.capture.generation_steps import Step
    from moetool.commands.generate_usage import Usage
    from moetool.report.page import Weights

_LEAST_SECONDS = 1 / 15
"""Between two pictures, so that a fast model is not slowed down."""
_COUNTERS, _COUNTERS_WIDTH = 7, 38
"""Lines and cells of what has been used so far."""
_MOST_TEXT = 7
"""Lines that are kept for the text where the grid or the routers could use them."""
_BAR_LABEL, _BAR_NUMBER = 12, 8
_BAR = "▇"
"""Not quite as high as a line, so that the bars of neighbours stay apart."""


class LiveView:
    """What the screen shows of one text; ``layer`` is the place of the selected one among the MoE layers."""

    def __init__(self, title: str, weights: Weights, usage: Usage, layer: int, new_tokens: int, delay: float) -> None:
        self.title, self.weights, self.usage, self.layer = title, weights, usage, layer
        self.new_tokens, self.delay = new_tokens, delay
        self.console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.text = Text()
        self.prompt_tokens = 0
        self.drawn = 0.0
        self.live: Live | None = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Take the screen, and give it back."""
        with Live(console=self.console, screen=True, auto_refresh=False) as self.live:
            yield

    def watch(self, step: Step) -> None:
        """Show what a forward pass did."""
        self.add(step)
        now = time.monotonic()
        if self.live is not None and now - self.drawn >= _LEAST_SECONDS:
            lines = self.draw(step, *self.console.size)
            self.live.update(Text("\n").join(lines), refresh=True)
            self.drawn = now
        time.sleep(self.delay)

    def add(self, step: Step) -> None:
        """Count a step without showing it."""
        self.prompt_tokens = self.prompt_tokens or len(step.tokens)
        layers = [layer.routing for layer in step.layers]
        self.usage.add(layers, decode=step.start > 0)
        first = first_choice(layers[self.layer].chosen, layers[self.layer].weight).tolist()
        for text, expert in zip(step.texts, first, strict=True):
            lines = "\n".join(map(inert, text.split("\n")))
            self.text.append(lines, Style(color=expert_color(expert), italic=not step.start))

    def draw(self, step: Step, width: int, height: int) -> list[Text]:
        """``height`` lines of at most ``width`` cells, from 40 x 16 on."""
        routed = [layer.routing for layer in step.layers]
        bars = self._bars(step, self.layer, width - _COUNTERS_WIDTH)
        bottom = max(min(len(bars), height // 3), _COUNTERS)
        above = height - 4 - bottom
        # Layers get a line each before the text gets half of the room, and more lines after that.
        text = min(max(above // 4, 1, min(above // 2, above - len(routed))), _MOST_TEXT)
        grid = Grid(routed, self.layer, width, above - text)
        cells = grid.lines()
        others = self._other_routers(step, width, bottom, above - text - len(cells))
        lines = [
            self._header(step, width),
            *self._last_lines(width, above - len(cells) - len(others)),
            _rule(grid.legend(), width),
            grid.axis(),
            *cells,
            self._router_rule(step, self.layer, min(len(bars), bottom), width),
            *_beside(bars, self._counters(step), width - _COUNTERS_WIDTH, bottom),
            *others,
        ]
        for line in lines:
            line.truncate(width)
        return lines

    def _other_routers(self, step: Step, width: int, most: int, room: int) -> list[Text]:
        """The routers of the next layers, as many as there is room for."""
        lines: list[Text] = []
        for place in range(1, len(step.layers)):
            other = (self.layer + place) % len(step.layers)
            bars = self._bars(step, other, width - _COUNTERS_WIDTH)[:most]
            if len(lines) + 1 + len(bars) > room:
                break
            lines += [self._router_rule(step, other, len(bars), width), *bars]
        return lines

    def _router_rule(self, step: Step, place: int, shown: int, width: int) -> Text:
        layer = step.layers[place].routing
        return _rule([f"router of layer {layer.layer}", f"{shown} of {layer.experts} experts"], width)

    def _header(self, step: Step, width: int) -> Text:
        last = step.start + len(step.tokens) - 1
        new = last - self.prompt_tokens + 1
        end = f", {new} of {self.new_tokens} new tokens" if new else ", the last of the prompt"
        place = f"token {last} {_quoted(step.texts[-1])}{end}"
        if cell_width(place) > width - 2:
            place = f"token {last}{end}"
        return Text.assemble((shorten(self.title, width - cell_width(place) - 2), "bold"), f"  {place}")

    def _last_lines(self, width: int, count: int) -> list[Text]:
        """The end of the text, in ``count`` lines."""
        text = self.text[-width * count :]
        text.rstrip()  # line breaks that nothing follows would push the text out of sight
        lines = list(text.wrap(self.console, width, overflow="fold"))[-count:]
        return [*lines, *[Text()] * (count - len(lines))]

    def _bars(self, step: Step, place: int, width: int) -> list[Text]:
        """What the router gave the experts that the last token read chose, and the likeliest that it refused."""
        layer = step.layers[place]
        chosen = layer.routing.chosen[-1].tolist()
        if layer.preferences is None:
            return [Text("the router shows no distribution", "dim"), *(Text(f"expert {one}") for one in chosen)]
        preferences = layer.preferences
        rows = [*zip(chosen, preferences.chosen[-1].tolist(), strict=True)]
        rows = sorted(rows, key=lambda row: -row[1])
        rows += zip(preferences.refused[-1].tolist(), preferences.refused_probability[-1].tolist(), strict=True)
        most = max((probability for _, probability in rows), default=1.0) or 1.0
        space = max(width - _BAR_LABEL - _BAR_NUMBER - 2, 1)
        lines = []
        for rank, (expert, probability) in enumerate(rows):
            lit = rank < len(chosen)
            bar = _BAR * round(space * probability / most)
            style = Style(color=expert_color(expert), bold=True) if lit else Style(dim=True)
            label = f"{'▸' if lit else ' '}expert {expert}"
            number = f" {probability * 100:.1f} %"
            lines.append(Text.assemble(f"{label:<{_BAR_LABEL}}", (bar, style), (number, "" if lit else "dim")))
        return lines

    def _counters(self, step: Step) -> list[Text]:
        weights, usage = self.weights, self.usage
        distinct, every = sum(usage.distinct), sum(usage.experts)
        parameters, size = write_value(weights.parameters, "parameters"), write_value(weights.loaded_bytes, "bytes")
        rows = (
            ("loaded", f"{parameters} parameters, {size}"),
            ("active", f"{write_value(weights.active_share, 'share')} per token"),
            ("touched", f"{write_value(usage.touched_share(weights), 'share')} so far"),
            ("experts", f"{distinct:,} of {every:,} used"),
            ("cache", f"{write_value(usage.hit_rate, 'share')} hits with {usage.cache} a layer"),
            ("next", f"{_quoted(step.next_text)} {write_value(step.next_probability, 'share')}"),
        )
        return [Text.assemble((f"{name:<9}", "dim"), value) for name, value in rows]


def _quoted(text: str) -> str:
    return f"“{shorten(text, 20) or '…'}”"


def _rule(parts: Sequence[str], width: int) -> Text:
    """A line with as many parts as there is room for."""
    title, *others = parts
    for part in others:
        if cell_width(title) + cell_width(part) + 2 <= width - 4:
            title += f", {part}"
    title = shorten(title, width - 4)
    return Text(f"─ {title} {'─' * (width - cell_width(title) - 3)}", "dim")


def _beside(left: Sequence[Text], right: Sequence[Text], place: int, count: int) -> list[Text]:
    """``count`` lines of two blocks, the right one from cell ``place`` on."""
    lines = []
    for number in range(count):
        line = left[number].copy() if number < len(left) else Text()
        line.truncate(place - 1, pad=True)
        lines.append(line + " " + right[number] if number < len(right) else line)
    return lines
