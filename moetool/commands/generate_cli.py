"""``moetool generate`` on the command line: a model and a prompt enter; a live view, a report and a page leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moetool.commands.generate import SUMMARY_COLUMNS, build_report
from moetool.commands.options import DeviceOption, DtypeOption, ModelOptions, OutputOptions, TraceOptions, with_options
from moetool.commands.routing import is_trace_folder, refuse_traces
from moetool.commands.run import check_writable, run_report, write_file
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.report import Report

if TYPE_CHECKING:
    from moetool.commands.generate_run import Written

PAGE_SUFFIXES = (".html", ".htm")
"""What ``--save`` writes the interactive page for."""


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """What is written, and how."""

    against: Annotated[
        str | None, typer.Option("--against", metavar="PROMPT", help="A second prompt, to be seen beside the first.")
    ] = None
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Tokens to write.", show_default=True)
    ] = 64
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", metavar="T", min=0.0, help="Draw tokens; 0 takes the likeliest.", show_default=True
        ),
    ] = 0.0
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", metavar="P", min=1e-6, max=1.0, help="Draw from the likeliest that reach P together."),
    ] = None
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", min=1, help="Draw from the K likeliest tokens.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the draws.", show_default=True)] = 0
    chat: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            "--chat",
            metavar="auto|on|off",
            help="Put the prompt into the tokenizer's chat template, if it has one.",
            show_default=True,
        ),
    ] = "auto"


@dataclass(frozen=True, slots=True)
class WatchingOptions:
    """What is shown of the routing."""

    layer: Annotated[
        int | None,
        typer.Option("--layer", metavar="N", help="The layer whose experts colour the text; one in the middle."),
    ] = None
    cache: Annotated[
        int | None,
        typer.Option(
            "--cache", metavar="C", min=1, help="Experts per layer that a cache holds; a quarter of them by default."
        ),
    ] = None
    delay: Annotated[
        float, typer.Option("--delay", metavar="SECONDS", min=0.0, help="Wait after every token, to watch it.")
    ] = 0.0


@dataclass(frozen=True, slots=True)
class LoadingOptions:
    """How the model is loaded; names and defaults are those of ``CaptureOptions``."""

    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    quantize: Annotated[
        Literal["8bit", "4bit"] | None,
        typer.Option("--quantize", metavar="8bit|4bit", help="Quantise the linear layers at load, by bitsandbytes."),
    ] = None


@with_options
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or a hub id.", show_default=False)],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.", show_default=False)],
    which: ModelOptions,
    writing: WritingOptions,
    watching: WatchingOptions,
    loading: LoadingOptions,
    keep: TraceOptions,
    output: OutputOptions,
) -> None:
    """Watch a model write: which experts its routers choose for every token.

    A terminal shows the routing as it happens; --save page.html keeps it as an interactive page, --save-trace FOLDER
    for the other commands. Ctrl-C ends the text, and the report is of what was written until then.
    """
    refuse_traces([model], "moetool generate")
    pages = [target for target in output.save if target.suffix.lower() in PAGE_SUFFIXES]
    others = [target for target in output.save if target not in pages]
    for target in pages:
        check_writable("--save", target)
    _check_trace_folder(keep)
    prompts = [prompt] if writing.against is None else [prompt, writing.against]
    errors: list[MoetoolError] = []

    def produce(progress: Progress) -> Report:
        from moetool.commands.generate_run import write_texts

        written = write_texts(model, which.revision, prompts, writing, watching, loading, output.quiet, progress)
        errors.extend(_save_beside(written, pages, keep))
        options = {"revision": which.revision, **asdict(writing), **asdict(loading)}
        del options["against"]  # the table of prompts has both
        return build_report(written, options)

    try:
        run_report(context, replace(output, save=others), SUMMARY_COLUMNS, produce, pictures=False)
    finally:
        # The text is printed even if a file could not be written: it may have taken long.
        if errors:
            raise errors[0]


def _save_beside(written: Written, pages: Sequence[Path], keep: TraceOptions) -> list[MoetoolError]:
    """Write the pages and the trace that can be written; what went wrong with the others."""
    from moetool.capture.join import join_traces
    from moetool.capture.store import write_trace
    from moetool.report.page import render_page

    errors = []
    content = render_page(written.generations, written.weights, written.layer).encode("utf-8") if pages else b""
    writers: list[Callable[[], None]] = [partial(write_file, "--save", target, content) for target in pages]
    if keep.save_trace is not None:
        joined = join_traces([generation.trace for generation in written.generations])
        writers.append(partial(write_trace, joined, keep.save_trace, keep.overwrite))
    for write in writers:
        try:
            write()
        except MoetoolError as error:
            errors.append(error)
    return errors


def _check_trace_folder(keep: TraceOptions) -> None:
    """Refuse a folder for the trace that could not be written in the end."""
    folder = keep.save_trace
    if folder is None or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_trace_folder(str(folder)):
        raise MoetoolError(f"--save-trace {folder} is there already, and no trace", "give a new folder")
    if not keep.overwrite:
        raise MoetoolError(f"--save-trace {folder} holds a trace", "give a new folder, or --overwrite to replace it")
