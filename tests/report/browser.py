"""Debian's Chromium: the HTML of a page enters, a tab leaves that takes down what a page must not do.

A module of tests says ``browser = pytest.fixture(start, scope="module")`` and ``tab = pytest.fixture(open_tab)``. While
a browser runs, so does an event loop: that is why modules do not share one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
)  # fmt: skip
DESKTOP = {"width": 1200, "height": 1000}
PHONE = {"width": 390, "height": 844}


DESCRIBE_FOCUS = """() => {
  const one = document.activeElement;
  if (one === document.body) return null;
  const box = one.getBoundingClientRect();
  const style = getComputedStyle(one);
  const words = [...(one.labels?.[0] || one).childNodes].filter((node) => node.nodeName === "#text");
  const name = one.getAttribute("aria-label") || words.map((word) => word.textContent).join("");
  return {
    name: `${one.tagName.toLowerCase()} ${name.trim()}`,
    ring: style.outlineStyle === "none" ? null : style.outlineWidth,
    inSight: box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth,
  };
}"""


def start() -> Iterator[Browser]:
    """The browser of a module's tests."""
    library = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install '.[test]'")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with library.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


class Tab:
    """One tab; ``noticed`` has all errors and warnings, and every request but that of the page's own file."""

    def __init__(self, page: Page, file: Path) -> None:
        self.page = page
        self.noticed: list[str] = []
        self._file = file
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.noticed.append(f"error: {error}"))
        page.on("request", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.noticed.append(f"{message.type}: {message.text}")

    def _see(self, request: Request) -> None:
        if request.url != self._file.as_uri() and not request.url.startswith(("data:", "blob:")):
            self.noticed.append(f"request: {request.url}")

    def open(self, html: str) -> Page:
        """The page from a file, as a reader opens it."""
        self._file.write_text(html, encoding="utf-8")
        self.page.goto(self._file.as_uri())
        return self.page


def open_tab(browser: Browser, tmp_path: Path) -> Iterator[Tab]:
    """A tab without network, after which nothing must have been noticed."""
    context = browser.new_context(viewport=DESKTOP, offline=True)
    tab = Tab(context.new_page(), tmp_path / "page.html")
    yield tab
    context.close()
    assert tab.noticed == []


def tab_stops(page: Page) -> list[str]:
    """What the tabulator reaches from the top, in order; every stop must have a ring around it, and be in sight."""
    stops: list[str] = []
    while len(stops) < 1000:
        page.keyboard.press("Tab")
        stop = page.evaluate(DESCRIBE_FOCUS)
        if stop is None:
            return stops
        assert stop["ring"] == "3px", f"the focus on {stop['name']} cannot be seen"
        assert stop["inSight"], f"{stop['name']} has the focus out of sight"
        stops.append(stop["name"])
    raise AssertionError(f"the focus goes round: {stops[:20]}")
