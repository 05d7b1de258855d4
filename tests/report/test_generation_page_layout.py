"""The page of a generation on screens of any width and on paper, in Chromium."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from moetool.report.page import render_page
from tests.report.browser import PHONE, open_tab, start
from tests.report.generations import make_full_page, make_generation, make_weights
from tests.report.test_accessibility import assert_accessible

browser = pytest.fixture(start, scope="module")
tab = pytest.fixture(open_tab)

TOPS = "all => all.map((one) => Math.round(one.getBoundingClientRect().top))"
PAIR = (make_generation(20, 3, 8, 2), make_generation(150, 3, 8, 2, name="against", seed=1))


def widen(page, width):
    """Give the page a width, and the time to draw its grids anew."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def sides(tab):
    """Two texts side by side, one much longer than the other."""
    return tab.open(make_full_page(PAIR)[0])


def test_many_experts_differ_and_can_be_read(tab):
    """64 tokens, each with an expert of its own."""
    generation = make_generation(64, 2, 64, 1, prompt_tokens=1)
    layers = tuple(replace(layer, chosen=np.arange(64, dtype=np.uint8)[:, None]) for layer in generation.trace.layers)
    page = tab.open(make_full_page([replace(generation, trace=replace(generation.trace, layers=layers))])[0])
    page.keyboard.press("End")
    page.locator("summary").first.click()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        colors = "all => all.map((one) => getComputedStyle(one).backgroundColor)"
        assert len(set(page.locator(".token").evaluate_all(colors))) == 64
    assert_accessible(page)


def test_names_of_experts_stay_on_a_line(tab):
    page = tab.open(render_page([make_generation(20, 3, 300, 8)], make_weights(3), 1))
    widen(page, PHONE["width"])
    rows = page.locator(".router li >> visible=true").evaluate_all("""rows => rows.map((row) => {
      const [name, track, number] = [...row.children].map((part) => part.getBoundingClientRect());
      return [name.height, name.right <= track.left, track.right <= number.left, track.width > 30];
    })""")
    assert len(rows) == 20
    assert all(height < 24 and apart for height, *rest in rows for apart in rest)
    assert page.locator(".others").text_content() == "280 more experts"


def test_panels_side_by_side_line_up(sides):
    for width in (1160, 1600):
        widen(sides, width)
        sides.locator("canvas").last.hover(position={"x": 60, "y": 30})  # so that one says more than the other
        for part in ("grid", "router", "memory"):
            (top, other) = sides.locator(f".panel.{part}").evaluate_all(TOPS)
            assert top == other, (width, part)
        filled = "all => all.map((one) => one.clientWidth / one.parentElement.clientWidth)"
        assert min(sides.locator("canvas").evaluate_all(filled)) > 0.9
    assert not re.search("[0-9] (%|[KM]iB)", " ".join(sides.locator(".side").all_text_contents()))


@pytest.mark.parametrize("width", [390, 960])
def test_choices_wrap_together(sides, width):
    widen(sides, width)
    assert len(set(sides.locator("select").evaluate_all(TOPS))) == 1


def test_paper_has_no_controls_and_is_light(sides):
    redrawn = """color => new Promise((done) => {
      const look = () => (sides[0].grid.colors["--idle"] === color ? done() : requestAnimationFrame(look));
      look();
    })"""
    sides.emulate_media(color_scheme="dark")
    sides.evaluate(redrawn, "#2a2f34")
    sides.emulate_media(media="print")
    sides.evaluate(redrawn, "#e9ecef")
    assert sides.evaluate("[...sides[0].grid.paper.getImageData(40, 22, 1, 1).data]") == [0xE9, 0xEC, 0xEF, 255]
    assert sides.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 250)"
    assert sides.locator(":is(button, input, select, .hint) >> visible=true").count() == 0
    adjusted = "all => all.map((one) => getComputedStyle(one).printColorAdjust)"
    assert set(sides.locator(".token, .track, .fill").evaluate_all(adjusted)) == {"exact"}
    # Chrome writes a canvas with cleared parts to a PDF whose page stays empty in its own viewer.
    assert "clearRect" not in sides.content()
    assert sides.locator(".side :is(h2, canvas, dl)").evaluate_all("all => all.every((one) => one.checkVisibility())")


def test_the_cursor_of_the_grid_stays_in_sight(tab):
    """With more experts than fit, keys scroll the grid, and the text scrolls with its own keys."""
    page = tab.open(render_page([make_generation(200, 2, 120, 2)], make_weights(2), 1))
    widen(page, PHONE["width"])
    grid = page.locator("canvas")
    grid.focus()
    for key, count in (("ArrowRight", 119), ("ArrowLeft", 119)):
        for _ in range(count):
            grid.press(key)
        seen = page.evaluate("""() => {
          const { cursor, grid } = sides[0], box = grid.canvas.parentElement;
          const left = 34 + cursor.expert * grid.cell - box.scrollLeft;
          return [cursor.expert, left >= 0 && left + grid.cell <= box.clientWidth];
        }""")
        assert seen == [119 if key == "ArrowRight" else 0, True]
    page.locator(".text").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("state.layer") == 1
