"""The page in a browser, Debian's chromium without a window; skipped where there is none."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from moetool.report.formats import FORMATS, Page
from moetool.report.report import Column, Table
from tests.report.pages import read_page
from tests.report.sample_report import make_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
)  # fmt: skip
COLUMNS = (
    Column("name", "Name", "text"),
    Column("size", "Size", "number"),
    Column("more", "More", "share", detail=True),
)
ACTIONS = """
const table = document.querySelector("#table-many table");
const section = document.querySelector("#table-many");
const [name, size] = table.tHead.rows[0].cells;
const first = () => [...table.tBodies[0].rows].slice(0, 3).map((row) => row.cells[0].textContent);
const state = () => ({
  first: first(), shown: table.tBodies[0].rows.length, waiting: table.tBodies[1].rows.length,
  sorted: [name.ariaSort, size.ariaSort], status: section.querySelector("[role=status]").textContent,
  detail: getComputedStyle(table.tHead.rows[0].cells[2]).display,
  page: getComputedStyle(document.body).backgroundColor,
});
const steps = [state()];
const step = (action) => { action(); steps.push(state()); };
step(() => size.querySelector("button").click());
step(() => size.querySelector("button").click());
step(() => name.querySelector("button").click());
const filter = section.querySelector("input[type=search]");
step(() => { filter.value = "NAME 24"; filter.dispatchEvent(new Event("input")); });
step(() => { filter.value = ""; filter.dispatchEvent(new Event("input")); });
step(() => section.querySelector(".tools button").click());
step(() => section.querySelector(".more").click());
step(() => document.querySelector("#dark").click());
document.body.append(Object.assign(document.createElement("pre"), { id: "steps", textContent: JSON.stringify(steps) }));
"""


def make_page() -> str:
    """250 rows, of which every fifth has no size; 0.1 and 0.2 look alike in their column."""
    rows = tuple(
        {"name": f"name {number}", "size": None if number % 5 == 0 else 1e6 + (number * 7 % 250) / 1e3, "more": 0.5}
        for number in range(250)
    )
    report = make_report()
    table = Table("many", "Many rows", COLUMNS, rows)
    return str(FORMATS["html"].render(replace(report, tables=(*report.tables, table)), Page()))


# Chromium asks for things of its own too: what the page asks for is kept apart from other sites' under its own address.
PAGE_REQUEST = re.compile(r'"network_isolation_key":"file:[^{}]*\{[^{}]*\}","url":"(https?:[^"]*)"')
POLICY = re.compile(r"<meta http-equiv[^>]*>")


def browse(folder: Path, page: str) -> tuple[str, list[str], set[str]]:
    """What the browser makes of the page, what it writes to its console, and what the page asks of the network."""
    file, log = folder / "report.html", folder / "network.json"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}/profile", f"--log-net-log={log}", file.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    requests = set(PAGE_REQUEST.findall(log.read_text(encoding="utf-8")))
    return result.stdout, re.findall(r"CONSOLE.*", result.stderr), requests


def test_no_errors_no_network_and_nothing_to_repair(tmp_path):
    page = make_page()
    content, console, requests = browse(tmp_path, page)
    assert console == []
    assert requests == set()
    read = read_page(content.replace("<!DOCTYPE html>", "<!doctype html>\n", 1))
    assert read.find("caption")[-1].text == "Many rows: 250 rows"
    # The script adds paragraphs, labels and buttons; of the rest a browser must read what was written.
    tags = ("section", "h1", "h2", "table", "caption", "th", "td", "tr", "li", "dl", "dd", "figure", "svg", "path")
    assert [one.tag for one in read.find(*tags)] == [one.tag for one in read_page(page).find(*tags)]


def test_what_would_be_noticed(tmp_path):
    picture = "http://example.invalid/x.png"
    page = make_page().replace("</body>", f'<script>alert(1)</script><img src="{picture}"></body>')
    _, console, requests = browse(tmp_path, page)
    assert len(console) == 2  # the policy refuses both
    assert requests == set()
    _, _, requests = browse(tmp_path, POLICY.sub("", page).replace("alert(1)", ""))
    assert requests == {picture}


def test_sorting_filtering_and_colours(tmp_path):
    page = POLICY.sub("", make_page()).replace("</body>", f"<script>{ACTIONS}</script></body>")
    content, console, _ = browse(tmp_path, page)
    assert console == []
    match = re.search(r'<pre id="steps">(.*?)</pre>', content)
    start, up, down, by_name, filtered, again, whole, detailed, dark = json.loads(match[1])
    assert (start["shown"], start["waiting"], start["status"]) == (100, 150, "100 of 250 rows")
    assert start["first"] == ["name 0", "name 1", "name 2"]
    sizes = {number: number * 7 % 250 for number in range(250) if number % 5}
    ascending = [f"name {number}" for number in sorted(sizes, key=sizes.__getitem__)]
    assert (up["first"], up["sorted"]) == (ascending[:3], [None, "ascending"])
    assert (down["first"], down["sorted"]) == (ascending[:-4:-1], [None, "descending"])
    assert (by_name["first"], by_name["sorted"]) == (["name 0", "name 1", "name 2"], ["ascending", None])
    assert (filtered["shown"], filtered["status"]) == (11, "11 of 11 rows")
    assert filtered["first"] == ["name 24", "name 240", "name 241"]
    assert (again["shown"], again["waiting"]) == (100, 150)
    assert (whole["shown"], whole["waiting"], whole["status"]) == (250, 0, "")
    assert [step["detail"] for step in (whole, detailed)] == ["none", "table-cell"]
    assert [step["page"] for step in (detailed, dark)] == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]
