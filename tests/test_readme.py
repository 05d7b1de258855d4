"""The README against the program: its console blocks run, its tables are generated (`pytest --update-golden`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moetool.model.families import FAMILIES

README = Path(__file__).parents[1] / "README.md"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(README.parent)}
MADE_WITH = re.compile(r"^Made with: moetool [^\n]*, torch [^$`]*", re.MULTILINE)
"""Versions and what depends on them, as far as the end of a report."""
BLOCK = re.compile(r"(?<=```console\n)(?P<body>.*?)(?=```)", re.DOTALL)
GLOSSARY = re.compile(r"<!-- glossary (?P<command>[\w-]+) -->\n(?P<table>(?:\n?\|.*\n)*)")
FAMILY_LIST = re.compile(r"<!-- families -->\n.*?<!-- /families -->", re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def run(command, folder):
    """Standard output of a README command, at 80 columns, with ``moetool`` from this tree."""
    environment = {**ENVIRONMENT, "COLUMNS": "80", "NO_COLOR": "1", "PY": sys.executable}
    script = f'set -o pipefail; moetool() {{ "$PY" -m moetool "$@"; }}; {command}'
    result = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 141), result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines())


def play(body, folder):
    """A console block with the outputs of its commands as they are now."""
    commands = [line for line in body.splitlines() if line.startswith("$ ")]
    return "".join(f"{command}\n{run(command[2:], folder)}\n" for command in commands)


def test_console_blocks(folder, request):
    text = README.read_text(encoding="utf-8")
    played = BLOCK.sub(lambda match: play(match["body"], folder), text)
    if request.config.getoption("--update-golden"):
        README.write_text(played, encoding="utf-8")
        return
    for old, new in zip(BLOCK.finditer(text), BLOCK.finditer(played), strict=True):
        exact = any(word in old["body"] for word in ("--help", "memory", "--explain", "generate"))
        first, second = (
            MADE_WITH.sub("", block["body"]) if exact else summary_of(block["body"]) for block in (old, new)
        )
        assert first == second


def summary_of(body):
    """Label and rounded number of every summary line of a report (two spaces, label, spaces, value)."""
    found = re.findall(r"^  (\S.*?)  +([-\d.,]+)(?: \S+)?$", body, re.MULTILINE)
    assert found
    return [(label, pytest.approx(float(value.replace(",", "")), rel=0.1, abs=0.05)) for label, value in found]


def generated(column):
    """Whether a key of the summary is the mean or the worst of a column of the table of layers, as a rule tells."""
    return column.help.endswith("over the layers.") and " of layers." in column.help


def glossary(command):
    """Every key of a command's JSON, with unit and meaning, as a Markdown table."""
    report = REPORTS[command]()
    rows = [("summary", column) for column in report.summary_columns if not generated(column)]
    rows += [(table.key, column) for table in report.tables for column in table.columns]
    lines = ["| where | key | unit | meaning |", "|---|---|---|---|"]
    for where, column in rows:
        meaning = column.help or column.title
        lines.append(f"| {where} | `{column.key}` | {column.unit} | {meaning.replace('|', chr(92) + '|')} |")
    if any(generated(column) for column in report.summary_columns):
        lines.append(
            "| summary | `mean_KEY`, `worst_KEY` | | Over the layers, of every `statistic` of `distribution`. |"
        )
    return "\n".join(lines) + "\n"


def family_table():
    """What runs each family, as ``tests/capture/test_families.py`` holds it against the families themselves."""
    outcomes = {"any": "exact in both engines", "resident": "exact, resident only", "refused": "refused"}
    lines = ["| families | outcome |", "|---|---|"]
    for engine, outcome in outcomes.items():
        found = sorted((family for family in FAMILIES.values() if family.engine == engine), key=lambda one: one.name)
        names = [family.name + (f": {family.reason}" if family.reason else "") for family in found]
        lines.append(f"| {('; ' if engine != 'any' else ', ').join(names)} | {len(found)} {outcome} |")
    return "\n".join(lines) + "\n"


def demo_report(command):
    from moetool.commands import capture, compare, route_stats, specialize
    from moetool.commands.options import RunOptions, TraceOptions
    from moetool.commands.routing import run_model
    from moetool.progress import SilentProgress

    trace = run_model("demo", None, RunOptions(max_tokens=600, device="cpu"), TraceOptions(), SilentProgress())
    if command in ("capture", "import"):
        return capture.build_report(trace, Path(__file__).parent, {}, command=command)
    if command == "compare":
        return compare.compare(trace, trace)
    return {"route-stats": route_stats, "specialize": specialize}[command].build_report(trace, {})


def generate_report():
    from moetool.commands.generate import build_report
    from moetool.commands.generate_cli import LoadingOptions, WatchingOptions, WritingOptions
    from moetool.commands.generate_run import write_texts
    from moetool.progress import SilentProgress

    options = (WritingOptions(max_new_tokens=4), WatchingOptions(), LoadingOptions(device="cpu"))
    return build_report(write_texts("demo", None, ["Once upon a time"], *options, True, SilentProgress()), {})


def memory_report():
    from moetool.commands.memory import report_memory

    return report_memory("demo")


def models_report():
    from moetool.commands.models import report_models

    return report_models()


REPORTS = {
    "memory": memory_report,
    "models": models_report,
    "route-stats": lambda: demo_report("route-stats"),
    "specialize": lambda: demo_report("specialize"),
    "capture": lambda: demo_report("capture"),
    "import": lambda: demo_report("import"),
    "generate": generate_report,
    "compare": lambda: demo_report("compare"),
}


def test_every_key_is_explained(request):
    text = README.read_text(encoding="utf-8")

    def fill(match):
        return f"<!-- glossary {match['command']} -->\n\n{glossary(match['command'])}"

    filled = GLOSSARY.sub(fill, text)
    filled = FAMILY_LIST.sub(f"<!-- families -->\n\n{family_table()}\n<!-- /families -->", filled)
    if request.config.getoption("--update-golden"):
        README.write_text(filled, encoding="utf-8")
        return
    assert filled == text
    assert len(GLOSSARY.findall(text)) == len(REPORTS)


def test_exit_codes_and_commands_appear():
    from moetool.cli import COMMANDS

    text = README.read_text(encoding="utf-8")
    for code in ("**0**", "**1**", "**2**", "**130**"):
        assert code in text
    for name, _ in COMMANDS:
        assert f"moetool {name} --help" in text


def test_python_example(folder):
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    run("moetool capture demo --out demo-trace --overwrite --quiet", folder)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, env=ENVIRONMENT)
