"""The command line: arguments and environment enter, a report on standard output and an exit code leave."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.main import get_command

from moetool import __version__
from moetool.commands.capture_cli import capture
from moetool.commands.compare_cli import compare
from moetool.commands.generate_cli import generate
from moetool.commands.import_cli import import_recordings
from moetool.commands.memory_cli import memory
from moetool.commands.models_cli import models
from moetool.commands.route_stats_cli import route_stats
from moetool.commands.run import drop_output
from moetool.commands.specialize_cli import specialize
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.values import inert

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("memory", memory),
    ("route-stats", route_stats),
    ("specialize", specialize),
    ("capture", capture),
    ("generate", generate),
    ("import", import_recordings),
    ("compare", compare),
    ("models", models),
)
"""Every subcommand, in the order of the help."""

_NO_REPORT = 2
_INTERRUPTED = 130
_TERMINATED = 143
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

app = typer.Typer(
    name="moetool",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every option can be set in the environment: MOETOOL_DEVICE=cpu stands for --device cpu. "
    "Options that may be repeated take several values, with ; between them.",
)
for _name, _command in COMMANDS:
    app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """What a Mixture-of-Experts model costs, where its tokens go and what its experts know."""
    context.obj = open_progress
    if version:
        typer.echo(f"moetool {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(_NO_REPORT)


class _TerminatedError(BaseException):
    """SIGTERM arrived: like KeyboardInterrupt, no handler of errors should catch it on the way."""


def main() -> NoReturn:
    """Run the command line and exit: 0 report written, 1 check failed, 2 no report, 130 or 143 interrupted."""
    with suppress(ValueError):
        # Python cannot change handlers in other threads than the first; then nobody sends us signals either.
        for name in ("SIGTERM", "SIGHUP"):  # the second: the terminal went away
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(getattr(signal, name), _on_termination)
    _fill_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal that cannot write a character is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except _TerminatedError:
        code = _TERMINATED
    except MoetoolError as error:
        code = _report_error(error.message, error.hint)
    except OSError as error:
        if error.errno in _FULL:
            drop_output()
            code = _report_error(f"nothing more can be written: {error.strerror}", None)
        else:
            code = _report_bug(error)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        code = _report_error(usage(), _usage_hint(error)) if usage else _report_bug(error)
    if code in (_INTERRUPTED, _TERMINATED):
        print("moetool: interrupted", file=sys.stderr)
    sys.exit(code)


def _fill_closed_streams() -> None:
    """Give ``moetool >&-`` and ``2>&-`` a place to write to, or the next file that is opened would be it."""
    for stream in ("stdin", "stdout", "stderr"):
        if getattr(sys, stream) is None:
            mode = "r" if stream == "stdin" else "w"
            # Python takes the lowest number that is free, which is that of the closed stream.
            setattr(sys, stream, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _run() -> int:
    command = get_command(app)
    result = command.main(
        prog_name="moetool", standalone_mode=False, default_map=settings_from_environment(command, os.environ)
    )
    return result if isinstance(result, int) else 0


def _on_termination(number: int, frame: FrameType | None) -> NoReturn:
    raise _TerminatedError


def settings_from_environment(command: Any, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Defaults of every subcommand's options from ``MOETOOL_*`` variables, as typer's ``default_map`` wants them."""
    settings: dict[str, dict[str, Any]] = {}
    for name, subcommand in command.commands.items():
        settings[name] = {}
        for parameter in subcommand.params:
            value = environment.get(f"MOETOOL_{parameter.name.upper()}")
            if value and parameter.param_type_name == "option":
                values = [part.strip() for part in value.split(";") if part.strip()]
                settings[name][parameter.name] = values if parameter.multiple else value
    return settings


def _report_error(message: str, hint: str | None) -> int:
    """``moetool: error: what happened`` and ``hint: what to try``, on standard error."""
    lines = [f"moetool: error: {message}"] + ([f"hint: {hint}"] if hint else [])
    for line in "\n".join(lines).splitlines():
        print(inert(line), file=sys.stderr)
    if os.environ.get("MOETOOL_DEBUG") == "1":
        traceback.print_exc()
    return _NO_REPORT


def _usage_hint(error: Exception) -> str:
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    variable = f"MOETOOL_{parameter.name.upper()}" if parameter else ""
    if os.environ.get(variable):
        return f"{variable} is set in the environment"
    return f"{context.command_path if context else 'moetool'} --help"


def _report_bug(error: Exception) -> int:
    return _report_error(
        f"{type(error).__name__}: {error} (this is a bug in moetool)", "MOETOOL_DEBUG=1 shows where it happened"
    )


def open_progress(quiet: bool) -> Progress:
    """Bars where standard error is a terminal, notes unless people asked for quiet."""
    return RichProgress(bars=sys.stderr.isatty() and not quiet, notes=not quiet)


class RichProgress:
    """Progress on standard error; rich is imported with the first bar."""

    def __init__(self, bars: bool, notes: bool) -> None:
        self._show_bars = bars
        self._show_notes = notes
        self._bars: Bars | None = None

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar until the step ends; steps may be nested."""
        if not self._show_bars:
            yield lambda amount: None
            return
        outermost = self._bars is None
        bars = self._bars = self._bars or _make_bars()
        if outermost:
            bars.start()
        task = bars.add_task(inert(title), total=total)
        try:
            yield lambda amount: bars.advance(task, amount)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    def note(self, message: str) -> None:
        """A sentence, above the bars where there are any."""
        if not self._show_notes:
            return
        if self._bars is None:
            print(inert(message), file=sys.stderr)
        else:
            self._bars.console.print(inert(message), markup=False, highlight=False, soft_wrap=True)


def _make_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Amount(MofNCompleteColumn):
        """``3/8``, where it is known how many there are."""

        def render(self, task: Task) -> Text:
            return Text() if task.total is None else super().render(task)

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Amount(),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True)
