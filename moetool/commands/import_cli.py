"""``moetool import`` on the command line: recordings of other tools enter, a trace folder and its description leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from moetool.capture.imports import FORMATS
from moetool.commands.capture import SUMMARY_COLUMNS
from moetool.commands.options import ModelOptions, OutputOptions, with_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(FORMATS)}.")
    return name


@dataclass(frozen=True, slots=True)
class RecordedOptions:
    """What the recording may not say of the model."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="The model that was recorded: its config tells layers and experts."
        ),
    ] = None
    experts: Annotated[
        int | None, typer.Option("--experts", metavar="N", min=1, max=65536, help="Routed experts of each MoE layer.")
    ] = None
    experts_per_token: Annotated[
        int | None, typer.Option("--experts-per-token", metavar="N", min=1, help="How many of them a token chooses.")
    ] = None
    decoder_layers: Annotated[
        int | None,
        typer.Option("--decoder-layers", metavar="N", min=1, help="All of them, dense ones too (responses of sglang)."),
    ] = None


@with_options
def import_recordings(
    context: typer.Context,
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="|".join(FORMATS),
            callback=_known_format,
            autocompletion=lambda incomplete: [name for name in FORMATS if name.startswith(incomplete)],
            help=". ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()) + ".",
        ),
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE",
            help="Recordings of one model, and the domain that each belongs to (default: the file's name).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the trace is written.")],
    recorded: RecordedOptions,
    which: ModelOptions,
    output: OutputOptions,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the trace that is in the folder.")] = False,
) -> None:
    """Make a trace of recordings that other tools wrote.

    What a recording does not say (how many experts there are, how many a token chooses) comes from --model or the
    options; nothing is guessed without a note. Other commands read the trace like one of moetool capture.
    """

    def produce(progress: Progress) -> Report:
        from moetool.commands.import_trace import describe_model, import_trace

        known = describe_model(
            recorded.model, which.revision, recorded.experts, recorded.experts_per_token, recorded.decoder_layers
        )
        return import_trace(format_name, sources, known, out, overwrite, progress)

    run_report(context, output, SUMMARY_COLUMNS, produce, pictures=False)
