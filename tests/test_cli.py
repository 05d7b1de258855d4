"""Streams, exit codes, files and the environment, with a command that returns a hand-made report."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from moetool import cli
from moetool.commands.memory_section import MemorySettings
from moetool.commands.options import OutputOptions
from moetool.commands.run import run_report
from moetool.errors import MoetoolError
from tests.report.sample_report import SUMMARY, make_report

FAKE = """
import sys, types
sys.path[:0] = {path}
from tests.report.sample_report import SUMMARY, make_report
def report_memory(model, revision, settings):
    {body}
    return make_report()
memory = types.ModuleType("moetool.commands.memory")
memory.report_memory, memory.SUMMARY_COLUMNS = report_memory, SUMMARY
sys.modules[memory.__name__] = memory
from moetool.cli import main
main()
"""


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, str | None]]:
    """Calls of the command's own work, which is replaced; a model called broken raises what it is called."""
    made = []
    errors = {
        "broken": MoetoolError("no such model: broken\x1b[31m", "moetool models"),
        "bug": RuntimeError("boom"),
        "ctrl-c": KeyboardInterrupt(),
    }

    def report_memory(model: str, revision: str | None, settings: MemorySettings):
        made.append((model, revision))
        if model in errors:
            raise errors[model]
        return make_report()

    fake = ModuleType("moetool.commands.memory")
    fake.report_memory, fake.SUMMARY_COLUMNS = report_memory, SUMMARY
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return made


@pytest.fixture
def run(calls, monkeypatch, capsys):
    """Run the command line; exit code, standard output, standard error."""
    before = signal.getsignal(signal.SIGTERM)

    def run_main(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    yield run_main
    signal.signal(signal.SIGTERM, before)


def test_the_report_is_all_of_standard_output(run, calls):
    code, out, err = run("memory", "demo", "--revision", "main", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["schema"] == "moetool.route-stats/1.0"
    assert calls == [("demo", "main")]
    code, out, err = run("memory", "demo")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert out.startswith("moetool route-stats: org/model")
    assert run("memory", "demo", "--format", "markdown")[1].startswith("## ")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["memory", "broken"], "no such model: broken\\x1b[31m", "moetool models"),
        (["memory", "bug"], "RuntimeError: boom (this is a bug in moetool)", "MOETOOL_DEBUG=1"),
        (["memory"], "Missing argument 'MODEL'", "moetool memory --help"),
        (["memory", "demo", "--nonsense"], "No such option: --nonsense", "moetool memory --help"),
        (["memory", "demo", "--format", "xml"], "'xml' is not one of text, json, markdown", "moetool memory --help"),
        (["memori"], "No such command 'memori'", "moetool --help"),
        (["memory", "demo", "--fail-if", "tokens >"], "expected a number at column 9", "KEY OP VALUE"),
        (["memory", "demo", "--fail-if", "token > 1"], "the summary has no token", "did you mean tokens?"),
        (["memory", "demo", "--save", "x.docx"], "no format is known for .docx", ".json"),
        (["memory", "demo", "--save", "x"], "no format is known for a name without suffix", ".json"),
        (["models", "--save", "x.png"], "this command draws no pictures", ".json"),
        (["memory", "demo", "--save", "no/folder/x.json"], "there is no folder no/folder", "mkdir"),
    ],
)
def test_errors(run, arguments, error, hint):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    first, *_, last = err.splitlines()
    assert first.startswith("moetool: error: ")
    assert error in first
    assert last.startswith("hint: ")
    assert hint in last


def test_without_a_command_there_is_help_but_no_report(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err.startswith("Usage: moetool")


def test_traceback_only_on_demand(run, monkeypatch):
    assert "Traceback" not in run("memory", "bug")[2]
    monkeypatch.setenv("MOETOOL_DEBUG", "1")
    assert "Traceback" in run("memory", "bug")[2]


def test_interrupted(run):
    assert run("memory", "ctrl-c") == (130, "", "moetool: interrupted\n")


def test_version_and_help(run):
    assert run("--version") == (0, "moetool 0.1.0\n", "")
    code, out, err = run("memory", "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80


def test_failed_checks(run):
    code, out, err = run("memory", "demo", "--json", "--fail-if", "dead_experts > 0", "--fail-if", "tokens < 1")
    assert code == 1
    assert [check["failed"] for check in json.loads(out)["checks"]] == [True, False]
    assert err == "moetool: check failed: dead_experts is 3; fails if dead_experts > 0\n"
    assert run("memory", "demo", "--fail-if", "dead_experts > 3")[0] == 0
    assert run("memory", "demo", "--fail-if", "z_loss > 3")[0] == 1


def test_save_every_format(tmp_path, capsys):
    names = ["a.txt", "a.json", "a.md", "a.png", "a.SVG"]
    options = OutputOptions(json=True, save=[tmp_path / name for name in names])
    run_report(SimpleNamespace(obj=cli.open_progress), options, SUMMARY, lambda progress: make_report())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "a.json").read_text() == capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "a.SVG").read_text()


def test_save_replaces_a_file_and_keeps_its_mode_and_links(run, tmp_path):
    target, link = tmp_path / "a.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run("memory", "demo", "--save", link)[0] == 0
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert json.loads(target.read_text())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write")
def test_a_target_that_cannot_be_written_is_refused_before_the_work(run, calls, tmp_path):
    code, out, err = run("memory", "demo", "--save", "/proc/x.json")
    assert (code, out, calls) == (2, "", [])
    assert "--save /proc/x.json cannot be written" in err
    (tmp_path / "a.json").mkdir()
    assert "is a folder" in run("memory", "demo", "--save", tmp_path / "a.json")[2]
    assert calls == []


def test_a_full_disk_leaves_the_old_file_and_still_prints_the_report(run, tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code, out, err = run("memory", "demo", "--save", target, "--save", tmp_path / "b.json", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2
    assert json.loads(out)
    assert f"--save {target} cannot be written: File too large" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert target.read_text() == "old"


def test_a_file_is_given_once(run, calls, tmp_path):
    (tmp_path / "link.csv").symlink_to("a.json")
    code, out, err = run("memory", "demo", "--save", tmp_path / "a.json", "--save", tmp_path / "link.csv")
    assert (code, out, calls) == (2, "", [])
    assert "is given twice, or through a link" in err
    (tmp_path / "loop.json").symlink_to("loop.json")
    assert "loop.json cannot be written" in run("memory", "demo", "--save", tmp_path / "loop.json")[2]
    assert calls == []


def test_a_pipe_is_written_into_and_stays_one(run, tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("memory", "demo", "--save", pipe)[0] == 0
    assert json.loads(os.read(reader, 2**16))["schema"]
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("redirection", "code", "expected"),
    [
        ("--version >&-", 0, ""),
        ("--version 2>&-", 0, "moetool 0.1.0\n"),
        ("memory nowhere >&- 2>&-", 2, ""),
        ("memory nowhere 2>&-", 2, ""),
        ("--help >/dev/full", 2, ""),
        ("memory --explain total_bytes >/dev/full", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(redirection, code, expected):
    script = f'"{sys.executable}" -m moetool {redirection}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, expected)
    assert "bug" not in done.stderr
    assert "Traceback" not in done.stderr


def test_files_on_standard_output_are_utf_8_whatever_the_locale():
    script = (
        "import sys; from moetool.commands.run import _print\n"
        "_print('text', 'M\\xfcller ' if sys.argv[1] == 'text' else '')\n"
        "_print('html', '\\U0001f600')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:backslashreplace"}
    done = subprocess.run([sys.executable, "-c", script, "html"], capture_output=True, env=environment, check=True)
    assert done.stdout == "\U0001f600".encode()
    done = subprocess.run([sys.executable, "-c", script, "text"], capture_output=True, env=environment, check=True)
    assert done.stdout == b"M\xfcller " + "\U0001f600".encode()


def test_environment_sets_any_option(run, monkeypatch, calls, tmp_path):
    monkeypatch.setenv("MOETOOL_FORMAT", "markdown")
    monkeypatch.setenv("MOETOOL_REVISION", "v1")
    monkeypatch.setenv("MOETOOL_FAIL_IF", "dead_experts > 3; tokens > 1")
    monkeypatch.setenv("MOETOOL_SAVE", f"{tmp_path}/a b.json;{tmp_path}/c.txt")
    code, out, err = run("memory", "demo")
    assert code == 1
    assert out.startswith("## ")
    assert calls == [("demo", "v1")]
    assert err.count("check failed") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b.json", "c.txt"]
    assert run("memory", "demo", "--format", "text", "--fail-if", "tokens < 1")[0] == 0
    monkeypatch.setenv("MOETOOL_FORMAT", "xml")
    assert "hint: MOETOOL_FORMAT is set in the environment" in run("memory", "demo")[2]


def test_notes_and_quiet(capsys):
    for quiet in (False, True):
        progress = cli.open_progress(quiet)
        with progress.step("reading", 3) as advance:
            advance(1)
            progress.note("hello\x1b[31m")
    assert capsys.readouterr().err == "hello\\x1b[31m\n"


def test_bars_may_be_nested_and_show_names_as_they_are(capsys):
    progress = cli.RichProgress(bars=True, notes=True)
    with progress.step("[red]layers\x1b[31m", 2) as advance, progress.step("inner"):
        advance(1)
        progress.note("[bold]note")
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "[bold]note" in streams.err
    assert "\x1b[31m" not in streams.err


def start(body: str, *arguments: str, **settings) -> subprocess.Popen:
    script = FAKE.format(path=[str(Path(__file__).parents[1])], body=body)
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True, **settings)


def test_a_reader_that_went_away_is_no_error():
    reader, writer = os.pipe()
    process = start("pass", "memory", "demo", stdout=writer)
    os.close(reader)
    os.close(writer)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


def test_a_full_standard_output_is_an_error():
    with open("/dev/full", "w") as full:
        process = start("pass", "memory", "demo", stdout=full)
        assert "standard output cannot be written: No space left" in process.communicate()[1]
    assert process.returncode == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(number, code, tmp_path):
    started = tmp_path / "started"
    process = start(f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)", "memory", "demo")
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate()[1] == "moetool: interrupted\n"
    assert process.returncode == code


def test_completion_knows_commands_options_and_formats():
    def complete(line: str) -> str:
        environment = {**os.environ, "_MOETOOL_COMPLETE": "complete_bash", "COMP_WORDS": line}
        environment["COMP_CWORD"] = str(len(line.split(" ")) - 1)
        process = start("pass", stdout=subprocess.PIPE, env=environment)
        return process.communicate()[0]

    assert "memory" in complete("moetool m")
    assert "--fail-if" in complete("moetool memory demo --f")
    assert complete("moetool memory demo --format j").split() == ["json", "junit"]
