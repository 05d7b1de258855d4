"""The gallery: the README's pictures are there, the committed page shows the script's cards, and the script runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from rich.text import Text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "gallery"
MARKDOWN_IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]+)\)")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|Users|private|var)/\w|\b[A-Z]:\\\\|file://")


@pytest.fixture(scope="module")
def gallery():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "examples")
        yield import_module("gallery")


@pytest.fixture(scope="module")
def pictures(gallery):
    return import_module("gallery_pictures")


class Index(HTMLParser):
    """What the gallery's page shows, card by card."""

    def __init__(self, path):
        super().__init__()
        self.cards, self.commands, self.links, self.pictures, self.tags = [], [], [], {}, set()
        self.in_command = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.add(tag)
        self.links += [named[name] for name in ("href", "src") if name in named]
        if tag == "article":
            self.cards.append(named["id"])
        elif tag == "pre":
            self.in_command = True
            self.commands.append("")
        elif tag == "img":
            self.pictures[named["src"]] = named["alt"]

    def handle_endtag(self, tag):
        self.in_command &= tag != "pre"

    def handle_data(self, data):
        if self.in_command:
            self.commands[-1] += data


def check_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size < 180_000
    with Image.open(path) as image:
        assert 600 <= image.width <= 1800
        assert 100 <= image.height <= 2100
        assert len(image.convert("RGB").getcolors(1 << 22)) > 16, "nothing is drawn"


def test_pictures_of_the_readme():
    images = list(MARKDOWN_IMAGE.finditer((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(images) >= 4
    for image in images:
        assert len(image["alt"]) > 60, "the alternative says what is seen"
        assert image["path"].startswith("examples/gallery/")
        check_picture(ROOT / image["path"])


def test_index_shows_the_cards(gallery):
    index = Index(FOLDER / "index.html")
    assert index.cards == [card.name for card in gallery.CARDS]
    assert index.commands == [card.command for card in gallery.CARDS]
    pictures = {f"{one.name}.png": one.alt for card in gallery.CARDS for one in card.pictures}
    assert index.pictures == pictures
    assert len(pictures) == sum(len(card.pictures) for card in gallery.CARDS), "two pictures of one name"
    pages = {card.page for card in gallery.CARDS}
    anchors = {f"#{name}" for name in index.cards}
    assert set(index.links) == pages | pictures.keys() | anchors, "relative, and nothing else"
    assert not index.tags & {"script", "iframe", "object", "link"}


def test_folder_has_what_the_cards_save_and_no_more(gallery):
    saved = {word for card in gallery.CARDS for word in re.findall(r"--save (\S+)", card.command)}
    pictures = {f"{one.name}.png" for card in gallery.CARDS for one in card.pictures}
    assert {path.name for path in FOLDER.iterdir()} == {"index.html"} | saved | pictures
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    for path in FOLDER.iterdir():
        if path.suffix == ".png":
            check_picture(path)
        else:
            text = path.read_text(encoding="utf-8")
            assert not MACHINE_PATH.search(text), path.name
            assert not re.search(r'(?:src|href)="?(?:https?:)?//', text), path.name


def test_lines_between_patterns(pictures):
    screen = pictures.Screen("one", "alt", (("^b", "^c"), ("^e", "^ *$")))
    lines = [Text(line) for line in ("a", "b", "x", "c", "d", "e", "", "f")]
    assert [line.plain for line in pictures.pick(lines, screen)] == ["b", "x", "c", "⋮", "e"]
    with pytest.raises(SystemExit, match="one: no line with \\^b"):
        pictures.pick(lines[:1], screen)


def run_script(*arguments):
    command = [sys.executable, ROOT / "examples" / "gallery.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_script_makes_a_card(pictures, tmp_path):
    if find_spec("playwright") is None or not any(map(shutil.which, pictures.BROWSERS)):
        pytest.skip("needs playwright and Chromium: pip install 'moetool[test]', apt-get install chromium")
    result = run_script(tmp_path, "memory-offload")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "memory-offload.html", "memory-offload.png"}
    assert "Does not fit" in (tmp_path / "memory-offload.html").read_text(encoding="utf-8")
    check_picture(tmp_path / "memory-offload.png")
    assert Index(tmp_path / "index.html").cards == ["memory-offload"], "only what is there"


def test_script_names_the_cards(tmp_path):
    result = run_script(tmp_path, "nothing")
    assert result.returncode == 1
    assert "no such card: nothing; there are generate, specialize" in result.stderr
    assert not list(tmp_path.iterdir())
