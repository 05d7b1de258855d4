"""The picture in a terminal while a model writes."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.color import Color, ColorSystem
from rich.console import Console

from moetool.commands.generate_live import LiveView
from moetool.commands.generate_live_grid import LABEL_WIDTH, Grid
from moetool.commands.generate_usage import Usage
from moetool.report.page.palette import expert_color
from tests.report.generations import HOSTILE, make_generation, make_layer, make_steps, make_weights

WEIGHT = np.array([[0.5, 0.5], [0.25, 0.75]])


def make_layers(count, experts=4, chosen=((0, 1), (0, 3))):
    return [make_layer(chosen, experts, WEIGHT, layer=number) for number in range(count)]


def plain(grid):
    return [line.plain for line in grid.lines()]


def test_a_grid_by_hand():
    """The last token counts; the lighter of two experts has the lighter shade, and layers share lines if need be."""
    layers = make_layers(4)
    assert plain(Grid(layers, 1, LABEL_WIDTH + 8, 4))[:2] == ["      0 ▒ · · █ ", "▸     1 ▒ · · █ "]
    assert plain(Grid(layers, 1, LABEL_WIDTH + 2, 4))[0] == "      0 ▒█"
    last = make_layer([[0, 1], [2, 1]], 4, WEIGHT, layer=3)
    assert plain(Grid([*layers[:3], last], 1, LABEL_WIDTH + 4, 2)) == ["▸   0-1 █··█", "    2-3 ▀▄▄▀"]
    assert plain(Grid(layers, 3, LABEL_WIDTH + 4, 1)) == ["▸   2-3 █··█"]


def test_a_grid_takes_the_room_there_is():
    """Cells of up to six columns and three lines, with a gap behind and below."""
    layers = make_layers(2)
    wide = ["      0 ▒▒▒▒▒   ·     ·   █████ ", "        ▒▒▒▒▒   ·     ·   █████ ", ""]
    assert plain(Grid(layers, 0, 300, 100))[3:] == [" " * 6 + "1" + wide[0][7:], *wide[1:]]
    assert plain(Grid(layers, 0, 300, 5)) == ["▸" + wide[0][1:], "", "      1" + wide[0][7:], ""]


def test_labels_do_not_dim_the_experts():
    """The style of a rich Text is that of everything appended to it."""
    (line,) = Grid(make_layers(1), 0, 20, 1).lines()
    assert line.style == ""
    assert [str(span.style) for span in line.spans] == ["bold", expert_color(0), "dim", "dim", expert_color(3)]


@pytest.mark.parametrize(
    ("size", "legend"),
    [
        ((200, 30), "experts by layer, ░▒▓█ weight"),
        ((200, 15), "experts by layer, 2 layers a line ▀▄, shade: weight"),
        ((72, 30), "experts by layer, 2 experts a cell, ░▒▓█ weight"),
        ((72, 9), "experts in layers 6-23 of 30, 2 a line ▀▄, 2 experts a cell, shade: weight"),
    ],
)
def test_a_grid_says_what_it_shows(size, legend):
    grid = Grid(make_layers(30, 128), 15, *size)
    assert ", ".join(grid.legend()) == legend
    if "layers 6-23" in legend:
        assert [plain(grid)[place].split()[0] for place in (0, -1)] == ["6-7", "22-23"]


@pytest.mark.parametrize(
    ("experts", "cells", "axis"),
    [
        (4, 16, "0   1   2   3"),
        (4, 8, "0 1 2 3"),
        (13, 13, "0   4   8"),
        (300, 30, "0   40  80  120 160 200 240"),
    ],
)
def test_an_axis_by_hand(experts, cells, axis):
    """A number stands above the first column of its cell, spaces are between two numbers, and none is cut."""
    layer = make_layer([[0, 1]], experts, np.array([[0.5, 0.5]]))
    assert Grid([layer], 0, LABEL_WIDTH + cells, 1).axis().plain == f" expert {axis}"


def draw(generation, size, layer=1):
    """The picture of the last token, and what the text has used."""
    layers = generation.trace.layers
    usage = Usage(layers, layers[0].experts_per_token)
    name = "a model with a name that is far too long for this" * 3
    view = LiveView(name, make_weights(len(layers)), usage, layer, 28, 0.0)
    for step in make_steps(generation):
        view.add(step)
    return view.draw(step, *size), usage


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (40, 16)])
@pytest.mark.parametrize("shape", [(4, 8, 2), (32, 64, 8), (61, 256, 8)])
def test_the_picture_fills_the_screen(size, shape):
    width, height = size
    lines, usage = draw(make_generation(30, *shape, texts=HOSTILE), size)
    output = io.StringIO()
    console = Console(file=output, width=width, height=height, force_terminal=False, _environ={})
    for line in lines:
        console.print(line, soft_wrap=True)
    printed = output.getvalue().splitlines()
    assert len(printed) == height
    assert max(map(len, printed)) <= width
    assert "".join(printed).isprintable()
    assert printed[0].endswith("28 of 28 new tokens")
    assert "token 29" in printed[0]
    assert "word29" in "".join(printed[1:])
    assert f"experts  {sum(usage.distinct):,} of {shape[0] * shape[1]:,}" in "\n".join(printed)


def rules(lines):
    """The titles between the parts of the picture."""
    return [line.plain.strip("─ ") for line in lines if line.plain.startswith("─ ")]


def test_the_picture_says_what_it_leaves_out():
    lines, _ = draw(make_generation(30, 30, 128, 8), (80, 24), layer=15)
    legend = "experts in layers 6-23 of 30, 2 a line ▀▄, 2 experts a cell, shade: weight"
    assert rules(lines) == [legend, "router of layer 15, 8 of 128 experts"]


def test_a_tall_screen_has_more_routers():
    lines, _ = draw(make_generation(30, 4, 8, 2), (120, 40), layer=2)
    assert rules(lines)[1:] == ["router of layer 2, 8 of 8 experts", "router of layer 3, 8 of 8 experts"]
    assert sum("▇" in line.plain for line in lines) > 8
    lines, _ = draw(make_generation(30, 4, 8, 2), (200, 60), layer=2)
    assert [title[:17] for title in rules(lines)[1:]] == [f"router of layer {number}" for number in (2, 3, 0, 1)]


def test_the_prompt_has_no_new_tokens():
    generation = make_generation(30, 2, 8, 2, prompt_tokens=7)
    view = LiveView("name", make_weights(2), Usage(generation.trace.layers, 2), 1, 23, 0.0)
    first, second, *_ = make_steps(generation)
    view.add(first)
    assert view.draw(first, 80, 24)[0].plain == "name  token 6 “ word6”, the last of the prompt"
    view.add(second)
    assert view.draw(second, 80, 24)[0].plain == "name  token 7 “ word7”, 1 of 23 new tokens"
    assert view.draw(second, 40, 16)[0].plain.endswith("  token 7 “ word7”, 1 of 23 new tokens")
    long = replace(second, texts=("a very long token",))
    assert view.draw(long, 40, 16)[0].plain == "name  token 7, 1 of 23 new tokens"


def test_few_experts_share_a_colour():
    """64 experts, where a terminal has all colours and where it has 256."""
    colors = [Color.parse(expert_color(expert)) for expert in range(64)]
    assert len(set(colors)) == 64
    coarse = [color.downgrade(ColorSystem.EIGHT_BIT).number for color in colors]
    assert len(set(coarse)) >= 40
    assert len(set(coarse[:16])) == 16


def test_a_terminal_shows_the_view_and_after_an_interrupt_the_report():
    """On a pseudo terminal: the alternate screen is taken and given back; the report follows on standard output."""
    leader, follower = pty.openpty()
    endless = ("--max-new-tokens", "900", "--delay", "0.05", "--device", "cpu")
    command = [sys.executable, "-m", "moetool", "generate", "demo", "Once upon a time", *endless]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    environment |= {"COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment)
    os.close(follower)
    shown, interrupted = b"", False
    try:
        while part := os.read(leader, 65536):
            shown += part
            if not interrupted and re.search(rb"[5-9] of 900 new tokens", shown):
                process.send_signal(signal.SIGINT)
                interrupted = True
    except OSError:  # how Linux says that the other end was closed
        pass
    finally:
        os.close(leader)
    report, _ = process.communicate()
    assert process.returncode == 0
    assert shown.index(b"\x1b[?1049h") < shown.index(b"experts by layer") < shown.index(b"\x1b[?1049l")
    assert b"\x1b[38;2;" in shown
    assert b"Interrupted: the report is of what was written until then." in report
    assert re.search(rb"New tokens +\d+\n", report)
    assert b"\x1b" not in report
