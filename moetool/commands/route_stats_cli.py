"""``moetool route-stats`` on the command line: a model or traces enter, the report of their routing leaves."""

from __future__ import annotations

import typer

from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.route_stats import SUMMARY_COLUMNS
from moetool.commands.routing import RoutingArgument, read_routing, reported_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report


@with_options
def route_stats(
    context: typer.Context,
    models: RoutingArgument,
    which: ModelOptions,
    run: RunOptions,
    keep: TraceOptions,
    output: OutputOptions,
) -> None:
    """Where the tokens go: load, dead experts, router confidence, locality, co-activation.

    Runs a model over text, or reads traces of earlier runs. demo reads its own corpora if no --text is given.
    """

    def produce(progress: Progress) -> Report:
        from moetool.commands.route_stats import build_report

        trace = read_routing(models, which.revision, run, keep, progress)
        return build_report(trace, reported_options(models, which.revision, run), progress)

    run_report(context, output, SUMMARY_COLUMNS, produce)
