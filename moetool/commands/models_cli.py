"""``moetool models`` on the command line: options enter, the report of what moetool knows by name leaves."""

from __future__ import annotations

import typer

from moetool.commands.options import OutputOptions, with_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report


@with_options
def models(context: typer.Context, output: OutputOptions) -> None:
    """Published models that are known by name, counted offline, and families that not every engine runs."""
    from moetool.commands.models import SUMMARY_COLUMNS, report_models

    def produce(progress: Progress) -> Report:
        return report_models()

    run_report(context, output, SUMMARY_COLUMNS, produce, pictures=False)
