"""``moetool capture`` on the command line: a model and text enter, a trace folder and its description leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.commands.capture import SUMMARY_COLUMNS
from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import reported_options, run_model
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report


@with_options
def capture(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or a hub id.")],
    which: ModelOptions,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the trace is written, or resumed.")],
    run: RunOptions,
    output: OutputOptions,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the trace that is in the folder.")] = False,
) -> None:
    """Run a model once and keep the routing of every token.

    Other commands read the trace as often as needed. An interrupted capture goes on where it stopped if the same
    command is given again.
    """

    def produce(progress: Progress) -> Report:
        from moetool.commands.capture import build_report

        trace = run_model(model, which.revision, run, TraceOptions(out, overwrite), progress)
        options = reported_options([model], which.revision, run)
        return build_report(trace, out, {**options, "out": str(out)})

    run_report(context, output, SUMMARY_COLUMNS, produce, pictures=False)
