"""The options of every command that answer without running it, or hold its report against an earlier one."""

import json
import subprocess
import sys

import pytest

from moetool import cli
from moetool.cli import COMMANDS


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder; exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run_main


@pytest.mark.parametrize("command", [name for name, _ in COMMANDS])
def test_every_command_explains_and_does_nothing_else(run, command):
    code, out, err = run(command, "--explain", "experts_per_token" if command != "compare" else "agreement")
    assert (code, err) == (0, "")
    assert "experts_per_token (count): " in out or "agreement (ratio): " in out or "layers." in out


def test_an_unknown_key_is_an_error(run):
    code, out, err = run("memory", "--explain", "total_byte")
    assert (code, out) == (2, "")
    assert err.startswith("moetool: error: --explain total_byte: a report of moetool memory has no such key\n")
    assert "hint: did you mean total_bytes or " in err


def test_an_explanation_imports_nothing_heavy():
    script = "import sys; from moetool.cli import main; sys.argv[1:] = ['memory', '--explain', 'total_bytes']\n"
    script += "try: main()\nfinally: print({'torch', 'numpy', 'pandas', 'rich'} & {*sys.modules}, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("summary.total_bytes (bytes): ")
    assert result.stderr == "set()\n"


def test_a_regression_fails(run, tmp_path):
    assert run("models", "--save", "before.json", "--format", "github")[:2] == (0, "")
    presets = json.loads((tmp_path / "before.json").read_text())["summary"]["presets"]
    same = ["models", "--baseline", "before.json", "--format", "github", "--fail-if"]
    assert run(*same, "presets < baseline") == (0, "", "")
    code, out, err = run(*same, "presets < baseline + 1")
    assert code == 1
    message = f"presets is {presets}; the baseline has {presets}"
    assert out == f"::error title=moetool models check failed::{message}; fails if presets < baseline + 1\n"
    assert err == f"moetool: check failed: {message}; fails if presets < baseline + 1\n"


def test_a_baseline_that_cannot_be_used_is_told_first(run):
    check = ("--fail-if", "presets < baseline")
    for arguments, message in (
        (("models", "--baseline", "none.json", *check), "--baseline none.json is no JSON report"),
        (("models", *check), 'fail-if "presets < baseline" needs a baseline'),
        (("models", "--baseline", "x.json"), "--baseline x.json is no JSON report"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert message in err


def test_saved_files_have_the_format_of_their_suffix(run, tmp_path):
    assert (
        run("models", "--quiet", "--save", "a.csv", "--save", "a.html", "--save", "a.xml", "--format", "github")[0] == 0
    )
    starts = {path.suffix: path.read_text().split("\n")[0] for path in tmp_path.iterdir()}
    assert starts == {
        ".csv": "table,row,key,value,unit",
        ".html": "<!doctype html>",
        ".xml": '<?xml version="1.0" encoding="utf-8"?>',
    }
