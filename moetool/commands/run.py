"""What every command does around its own work: options enter, a report is written and an exit code leaves."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import cast

import typer

from moetool.commands.options import OutputOptions
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.baseline import find_differences, read_baseline
from moetool.report.checks import evaluate, parse, validate_keys
from moetool.report.formats import FORMATS, SUFFIXES, Page, format_of_file
from moetool.report.report import Column, Report
from moetool.report.values import inert

_FILE_WIDTH = 160
"""Cells per line of saved text: a file has no edge, and the same report gives the same file."""
_CHECK_FAILED = 1


def run_report(
    context: typer.Context,
    options: OutputOptions,
    keys: Sequence[str | Column],
    produce: Callable[[Progress], Report],
    *,
    pictures: bool = True,
    html: Callable[[Report], str] | None = None,
) -> None:
    """Check options, produce the report, save and print it, and evaluate its checks.

    ``keys`` are those of the report's summary (as Columns, so that units are checked early too); ``pictures=False``
    says that it has no figures, and ``html`` writes a page of the command's own. ``context.obj`` makes the Progress.
    Raises MoetoolError before ``produce`` is called where a ``--save`` target, a ``--fail-if`` or the ``--baseline`` is
    wrong, after printing where a file cannot be written, and typer.Exit(1) where a check failed.
    """
    expressions = [parse(text) for text in options.fail_if]
    earlier = read_baseline(options.baseline, str(context.info_name)) if options.baseline else None
    baseline = None if earlier is None else earlier["summary"]
    validate_keys(expressions, keys, baseline)
    check_targets(options.save, pictures=pictures)
    _keep_baseline(options)
    open_progress = cast(Callable[[bool], Progress], context.obj)
    report = produce(open_progress(options.quiet))
    report = report.with_checks(evaluate(report, expressions, baseline))
    if earlier is not None:
        report = replace(report, findings=(*report.findings, *find_differences(earlier, report)))
    report.verify()
    errors = _save(report, options.save, html)
    # Printed even if a file could not be written: a report may have taken hours.
    format = options.printed_format
    _print(format, _render(format, report, _terminal_page(), html))
    if errors:
        raise errors[0]
    failed = [check for check in report.checks if check.failed]
    for check in failed:
        typer.echo(f"moetool: check failed: {inert(check.sentence)}", err=True)
    if failed:
        raise typer.Exit(_CHECK_FAILED)


def _keep_baseline(options: OutputOptions) -> None:
    """Raise MoetoolError where a report would replace what it is held against: the next run would pass."""
    for target in options.save:
        if options.baseline is not None and _resolved("--save", target) == _resolved("--baseline", options.baseline):
            raise MoetoolError(
                f"--save {target} would replace the --baseline, even where a check fails",
                "save to another file, and move it there once the checks pass",
            )


def check_targets(targets: Sequence[Path], *, pictures: bool = True) -> None:
    """Raise MoetoolError for a ``--save`` target that has no known suffix or cannot be written; leaves no file."""
    files = [_resolved("--save", target) for target in targets]
    twice = next((target for target, file in zip(targets, files, strict=True) if files.count(file) > 1), None)
    if twice is not None:
        raise MoetoolError(f"--save {twice} is given twice, or through a link", "name each file once")
    for target in targets:
        format = format_of_file(target)
        usable = [suffix for suffix, known in SUFFIXES.items() if known.printable or pictures]
        if format is None:
            raise MoetoolError(f"--save {target}: no format is known for {target.suffix or 'a name without suffix'}",
                               f"name it with one of {' '.join(usable)}")  # fmt: skip
        if not (format.printable or pictures):
            raise MoetoolError(f"--save {target}: this command draws no pictures", f"use one of {' '.join(usable)}")
        check_writable("--save", target)


def check_writable(option: str, target: Path) -> None:
    """Raise MoetoolError for a target of an option that cannot be written; leaves no file."""
    if target.is_dir():
        raise MoetoolError(f"{option} {target} is a folder", f"name a file in it: {target / 'report.json'}")
    if not target.parent.is_dir():
        raise MoetoolError(f"{option} {target}: there is no folder {target.parent}", f"mkdir -p '{target.parent}'")
    # Writing is the only sure test: permissions do not tell of read-only or full disks.
    write_file(option, target, None)


def _render(format: str, report: Report, page: Page, html: Callable[[Report], str] | None) -> str | bytes:
    return html(report) if html is not None and format == "html" else FORMATS[format].render(report, page)


def _save(report: Report, targets: Sequence[Path], html: Callable[[Report], str] | None) -> list[MoetoolError]:
    """Write every file that can be written; what went wrong with the others."""
    errors = []
    for target in targets:
        format = format_of_file(target)
        assert format is not None
        try:
            content = _render(format.name, report, Page(width=_FILE_WIDTH), html)
            encoded = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
            write_file("--save", target, encoded)
        except MoetoolError as error:
            errors.append(error)
    return errors


def write_file(option: str, target: Path, content: bytes | None) -> None:
    """Write a file as a whole or not at all; without content only try whether its folder can be written."""
    target = _resolved(option, target)  # a link keeps pointing to the file that is replaced
    try:
        if target.exists() and not target.is_file():  # a device or a pipe: /dev/stderr, a reader's fifo
            if content is not None:
                target.write_bytes(content)
            return
    except OSError as error:
        raise MoetoolError(f"{option} {target} cannot be written: {error.strerror or error}") from None
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content or b"\0")
        if content is not None:
            if target.exists():
                shutil.copymode(target, temporary)
            temporary.replace(target)
    except OSError as error:
        raise MoetoolError(f"{option} {target} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _resolved(option: str, target: Path) -> Path:
    try:
        return target.resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise MoetoolError(f"{option} {target} cannot be written: {error}") from None


def _terminal_page() -> Page:
    terminal = sys.stdout.isatty()
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Page(width=shutil.get_terminal_size().columns, color=color)


def _print(format: str, content: str | bytes) -> None:
    """Write to standard output; a reader that went away (``moetool ... | head``) is no error."""
    assert isinstance(content, str)
    if format != "text" and isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # what files are, and say so
    try:
        sys.stdout.write(content)
        sys.stdout.flush()
    except OSError as error:
        drop_output()
        if not isinstance(error, BrokenPipeError):
            raise MoetoolError(f"standard output cannot be written: {error.strerror or error}") from None


def drop_output() -> None:
    """Send standard output nowhere: what is left in its buffer must not raise again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
