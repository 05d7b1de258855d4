"""``moetool memory`` on the command line: a model's name and options enter, its report of costs leaves."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.commands.options import ModelOptions, OutputOptions, with_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="demo, a folder, a config.json or a hub id."),
]


@with_options
def memory(context: typer.Context, model: ModelArgument, which: ModelOptions, output: OutputOptions) -> None:
    """What a model costs: parameters and bytes, and its active share.

    Only headers are read, no weights; a config.json alone is counted on an empty model.
    """
    from moetool.commands.memory import SUMMARY_COLUMNS, report_memory

    def produce(progress: Progress) -> Report:
        return report_memory(model, which.revision)

    run_report(context, output, SUMMARY_COLUMNS, produce, pictures=False)
