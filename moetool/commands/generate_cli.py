"""``moetool generate`` on the command line: a model and a prompt enter; a live view, a report and a page leave."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moetool.commands.generate import build_report
from moetool.commands.generate_columns import SUMMARY_COLUMNS
from moetool.commands.options import DeviceOption, DtypeOption, ModelOptions, OutputOptions, TraceOptions, with_options
from moetool.commands.routing import is_trace_folder, refuse_traces
from moetool.commands.run import check_writable, run_report
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.formats import SUFFIXES
from moetool.report.report import Report

if TYPE_CHECKING:
    from moetool.commands.generate_run import Written

PromptArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT",
        help="The text to continue; - reads it from standard input (UTF-8, but for a last line break).",
        show_default=False,
    ),
]
_STANDARD_INPUT = "-"
_SAVED = " ".join(suffix for suffix, format in SUFFIXES.items() if format.printable)


@dataclass(frozen=True, slots=True)
class WritingOptions:
    """What is written, and how."""

    against: Annotated[
        str | None,
        typer.Option("--against", metavar="PROMPT", help="A second prompt beside the first; - as for PROMPT."),
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
            "--cache",
            metavar="C",
            min=1,
            help="Experts per layer that a cache holds, those used last, and at least the K of one token; by default a"
            " quarter of them. It changes the report only.",
        ),
    ] = None
    delay: Annotated[
        float, typer.Option("--delay", metavar="SECONDS", min=0.0, help="Wait after every token that is shown.")
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


@dataclass(frozen=True, slots=True)
class PageOptions(OutputOptions):
    """How the report is written: the page that is saved is interactive, and there are no pictures."""

    save: Annotated[
        list[Path],
        typer.Option(
            "--save",
            metavar="FILE",
            help=f"Also write the report to a file: {_SAVED}. May be repeated. HTML is an interactive page.",
        ),
    ] = field(default_factory=list)


@with_options
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or a hub id.", show_default=False)],
    prompt: PromptArgument,
    which: ModelOptions,
    writing: WritingOptions,
    watching: WatchingOptions,
    loading: LoadingOptions,
    keep: TraceOptions,
    output: PageOptions,
) -> None:
    """Watch a model write: which experts its routers choose for every token.

    A terminal shows the routing as it happens; --save page.html keeps it as an interactive page, --save-trace FOLDER
    for the other commands. Ctrl-C ends the text, and the report is of what was written until then.
    """
    refuse_traces([model], "moetool generate")
    _check_trace_folder(keep)
    prompts = _read_prompts(prompt, writing.against)
    errors: list[MoetoolError] = []
    done: list[Written] = []

    def produce(progress: Progress) -> Report:
        from moetool.commands.generate_run import write_texts

        written = write_texts(model, which.revision, prompts, writing, watching, loading, output.quiet, progress)
        done.append(written)
        if keep.save_trace is not None:
            errors.extend(_save_trace(written, keep.save_trace, keep.overwrite))
        options = {"revision": which.revision, **asdict(writing), **asdict(loading)}
        del options["against"]  # the table of prompts has both
        return build_report(written, options)

    try:
        run_report(
            context, output, SUMMARY_COLUMNS, produce, pictures=False, html=lambda report: _render(done[0], report)
        )
    finally:
        # The text is printed even if the trace could not be written: it may have taken long.
        if errors:
            raise errors[0]


def _read_prompts(prompt: str, against: str | None) -> list[str]:
    prompts = [prompt] if against is None else [prompt, against]
    if prompts.count(_STANDARD_INPUT) > 1:
        raise MoetoolError("PROMPT and --against are both -: standard input is one text", "give one of them in quotes")
    return [_read_standard_input() if text == _STANDARD_INPUT else text for text in prompts]


def _read_standard_input() -> str:
    hint = "moetool generate demo - < prompt.txt"
    if sys.stdin.isatty():
        raise MoetoolError("the prompt is -, and standard input is a terminal", hint)
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MoetoolError("the prompt is -, and standard input is no text in UTF-8", hint) from None
    if not text.strip():
        raise MoetoolError("the prompt is -, and standard input is empty", hint)
    return text.removesuffix("\n").removesuffix("\r")


def _save_trace(written: Written, folder: Path, overwrite: bool) -> list[MoetoolError]:
    """Write the trace; what went wrong with it."""
    from moetool.capture.join import join_traces
    from moetool.capture.store import write_trace

    try:
        write_trace(join_traces([generation.trace for generation in written.generations]), folder, overwrite)
    except MoetoolError as error:
        return [error]
    return []


def _render(written: Written, report: Report) -> str:
    """The interactive page."""
    from moetool.commands.generate_usage import running_hit_rate
    from moetool.report.page import CacheHits, render_page

    rates = tuple(running_hit_rate(generation, written.cache) for generation in written.generations)
    cache = CacheHits(written.cache, rates)
    return render_page(written.generations, written.weights, written.layer, report, cache)


def _check_trace_folder(keep: TraceOptions) -> None:
    """Refuse a folder for the trace that could not be written in the end."""
    folder = keep.save_trace
    if keep.overwrite and folder is None:
        raise MoetoolError("--overwrite goes with --save-trace, which is not given", "add --save-trace FOLDER")
    if folder is None:
        return
    if not folder.exists():
        missing = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
        check_writable("--save-trace", missing[-1])
        return
    if folder.is_dir() and not any(folder.iterdir()):
        check_writable("--save-trace", folder / "trace.json")
        return
    if not is_trace_folder(str(folder)):
        raise MoetoolError(f"--save-trace {folder} is there already, and no trace", "give a new folder")
    if not keep.overwrite:
        raise MoetoolError(f"--save-trace {folder} holds a trace", "give a new folder, or --overwrite to replace it")
