"""A card of the gallery: a command enters, pictures of its terminal and of the page that it saves leave."""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gallery_template import DARK, TERMINAL, show_command
from PIL import Image
from rich.console import Console
from rich.text import Text

ROWS = 24
"""Lines of the terminal; only the live view, which fills it, is of that height."""
SHARPNESS = 1.5
"""Pixels of a picture for one of the page."""
EDGE = 2
"""Around a part, so that rounding does not cut its border."""
MARGIN = 14
"""Around the parts of a page and between them."""
ENVIRONMENT = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "MOETOOL_DEVICE": "cpu", "PYTHONUTF8": "1"}
LEFT_OUT = "⋮"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


@dataclass(frozen=True, slots=True)
class Screen:
    """A picture of the terminal."""

    name: str
    alt: str
    lines: tuple[tuple[str, str], ...] = ()
    """Patterns of the first and the last line of what is shown, as in ``sed -n '/first/,/last/p'``; all if empty."""
    live: bool = False
    """The last thing that the live view showed, instead of the report that follows it."""


@dataclass(frozen=True, slots=True)
class Page:
    """A picture of the page."""

    name: str
    alt: str
    parts: tuple[str, ...]
    """Selectors of what is shown, one below the other."""
    keys: tuple[str, ...] = ()
    """Pressed before."""
    width: int = 960
    """Of the window."""


@dataclass(frozen=True, slots=True)
class Card:
    """A command and its pictures, the best one first; its page is what it saves as .html."""

    name: str
    title: str
    answers: str
    command: str
    pictures: tuple[Screen | Page, ...]
    columns: int = 100
    with_errors: bool = False
    """Whether standard error, where the live view and failed checks are, goes to the terminal too."""
    exit_code: int = 0

    @property
    def page(self) -> str:
        """The page's file name."""
        return next(word for word in shlex.split(self.command) if word.endswith(".html"))


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium, which goes nowhere but to files."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is on the path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser.new_context(device_scale_factor=SHARPNESS, color_scheme="light", offline=True)
        browser.close()


def make(card: Card, folder: Path, browser: Any) -> None:
    """Run a card's command and take its pictures."""
    output = run(card, folder)
    for picture in card.pictures:
        page = browser.new_page()
        if isinstance(picture, Screen):
            page.set_content(draw_terminal(card, picture, output))
            images = [photograph(page, ".terminal", 0)]
        else:
            page.set_viewport_size({"width": picture.width, "height": 800})
            page.goto((folder / card.page).resolve().as_uri())
            for key in picture.keys:
                page.keyboard.press(key)
            images = [photograph(page, part, EDGE) for part in picture.parts]
        page.close()
        whole = stack(images, round(MARGIN * SHARPNESS) if isinstance(picture, Page) else 0)
        whole.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(folder / f"{picture.name}.png", optimize=True)


def photograph(page: Any, part: str, edge: int) -> Image.Image:
    """The first element that a selector finds."""
    box = page.locator(part).first.bounding_box()
    start, size = (
        {"x": box["x"] - edge, "y": box["y"] - edge},
        {one: box[one] + 2 * edge for one in ("width", "height")},
    )
    return Image.open(io.BytesIO(page.screenshot(full_page=True, clip=start | size))).convert("RGB")


def run(card: Card, folder: Path) -> str:
    """What a command writes to its terminal."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MOETOOL_", "NO_COLOR"))}
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (ROWS, card.columns))
    process = subprocess.Popen(
        [sys.executable, "-m", *shlex.split(card.command)],
        cwd=folder,
        env={**ours, **ENVIRONMENT, "COLUMNS": str(card.columns), "LINES": str(ROWS)},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer if card.with_errors else None,
    )
    os.close(writer)
    output = b"".join(iter(partial(read_terminal, reader), b""))
    os.close(reader)
    if process.wait() != card.exit_code:
        sys.exit(f"exit code {process.returncode}, not {card.exit_code}: {card.command}")
    return output.decode("utf-8").replace("\r\n", "\n")


def read_terminal(reader: int) -> bytes:
    """What is there to read, at last nothing: Linux reports the end of a terminal as an error."""
    try:
        return os.read(reader, 1 << 16)
    except OSError:
        return b""


def draw_terminal(card: Card, picture: Screen, output: str) -> str:
    """A page that looks like a terminal, with the command as its title."""
    before, _, after = output.rpartition("\x1b[?1049l")  # where the live view gives the screen back
    shown = Text.from_ansi(before.rpartition("\x1b[H")[2] if picture.live else after)
    lines = list(shown.split("\n"))
    if picture.lines:
        lines = pick(lines, picture)
    if card.exit_code:
        lines.append(Text(f"exit code {card.exit_code}", "bold red"))
    console = Console(
        record=True, file=io.StringIO(), width=card.columns, force_terminal=True, color_system="truecolor"
    )
    console.print(Text("\n").join(lines), end="", soft_wrap=True)
    body = console.export_html(theme=DARK, code_format="{code}", inline_styles=True)
    return TERMINAL.format(title=show_command(card.command), columns=card.columns, body=body)


def pick(lines: Sequence[Text], picture: Screen) -> list[Text]:
    """The lines between each pair of patterns, with a mark where some are left out."""
    picked: list[Text] = []
    for first, last in picture.lines:
        start = next((n for n, line in enumerate(lines) if re.search(first, line.plain)), None)
        if start is None:
            sys.exit(f"{picture.name}: no line with {first}")
        end = next((n for n, line in enumerate(lines) if n >= start and re.search(last, line.plain)), len(lines) - 1)
        while not lines[end].plain.strip():
            end -= 1
        picked += [*([Text(LEFT_OUT, "dim")] if picked else []), *lines[start : end + 1]]
    return picked


def stack(images: Sequence[Image.Image], margin: int) -> Image.Image:
    """One below the other, on the colour of their corner."""
    width = max(image.width for image in images) + 2 * margin
    height = sum(image.height + margin for image in images) + margin
    whole = Image.new("RGB", (width, height), images[0].getpixel((0, 0)))
    top = margin
    for image in images:
        whole.paste(image, (margin, top))
        top += image.height + margin
    return whole


def size_of(folder: Path, name: str) -> str:
    """The attributes that keep a picture's place while it loads."""
    with Image.open(folder / f"{name}.png") as image:
        return 'width="{}" height="{}"'.format(*(round(pixels / SHARPNESS) for pixels in image.size))
