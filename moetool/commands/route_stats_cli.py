"""``moetool route-stats`` on the command line: a model or traces enter, the report of their routing leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import RoutingArgument, read_routing, reported_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report


@dataclass(frozen=True, slots=True)
class StatisticsOptions:
    """What is reported of the routing, and what else is written."""

    by: Annotated[
        Literal["layer", "expert"],
        typer.Option("--by", metavar="layer|expert", help="Rows down to layers, or to experts.", show_default=True),
    ] = "layer"
    phase: Annotated[
        Literal["prefill", "decode"] | None,
        typer.Option(
            "--phase", metavar="prefill|decode", help="Only prompt tokens, or only generated ones; both by default."
        ),
    ] = None
    figures: Annotated[bool, typer.Option("--figures", help="Draw the figures in the terminal too.")] = False
    export: Annotated[
        list[Path],
        typer.Option(
            "--export",
            metavar="FILE",
            help="Write tokens per expert: .csv or .parquet (layer,expert,count), or .json (logical_count of SGLang)."
            " May be repeated.",
        ),
    ] = field(default_factory=list)


@with_options
def route_stats(
    context: typer.Context,
    models: RoutingArgument,
    which: ModelOptions,
    run: RunOptions,
    keep: TraceOptions,
    statistics: StatisticsOptions,
    output: OutputOptions,
) -> None:
    """Where the tokens go: load, dead experts, router confidence, locality, co-activation, paths.

    Runs a model over text, or reads traces of earlier runs. demo reads its own corpora if no --text is given.
    """
    from moetool.commands.export import check_exports, write_exports
    from moetool.commands.route_stats_summary import summary_columns

    check_exports(statistics.export)

    def produce(progress: Progress) -> Report:
        from moetool.commands.route_stats import build_report

        trace = read_routing(models, which.revision, run, keep, progress)
        options = {**reported_options(models, which.revision, run), "phase": statistics.phase}
        by_expert = statistics.by == "expert"
        report = build_report(
            trace, options, progress, phase=statistics.phase, by_expert=by_expert, figures=statistics.figures
        )
        write_exports(report, statistics.export)
        return report

    run_report(context, output, summary_columns(), produce)
