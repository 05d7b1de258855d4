"""``moetool specialize`` on the command line: a model or traces enter, the report of their specialists leaves."""

from __future__ import annotations

import typer

from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import RoutingArgument, read_routing, reported_options
from moetool.commands.run import run_report
from moetool.commands.specialize import SUMMARY_COLUMNS
from moetool.progress import Progress
from moetool.report.report import Report


@with_options
def specialize(
    context: typer.Context,
    models: RoutingArgument,
    which: ModelOptions,
    run: RunOptions,
    keep: TraceOptions,
    output: OutputOptions,
) -> None:
    """Which expert prefers which domain of text, and how sure that is.

    Needs at least two domains: --text NAME=FILE for each. demo reads its own six if no --text is given.
    """

    def produce(progress: Progress) -> Report:
        from moetool.commands.specialize import build_report

        trace = read_routing(models, which.revision, run, keep, progress, least_domains=2)
        return build_report(trace, reported_options(models, which.revision, run), progress)

    run_report(context, output, SUMMARY_COLUMNS, produce)
