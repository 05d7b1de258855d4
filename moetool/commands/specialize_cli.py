"""``moetool specialize`` on the command line: a model or traces enter, the report of their specialists leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import typer

from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import (
    RoutingArgument,
    capture_input,
    read_input,
    read_routing,
    refuse_ranks,
    refuse_traces,
    reported_options,
)
from moetool.commands.run import run_report
from moetool.commands.specialize import SUMMARY_COLUMNS
from moetool.commands.specialize_targets import check_domains, parse_targets, write_targets
from moetool.progress import Progress
from moetool.report.report import Report


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is written for other tools."""

    export: Annotated[
        list[str],
        typer.Option(
            "--export",
            metavar="KIND=FILE",
            help="Write atlas=FILE (every expert), esft:DOMAIN=FILE (ESFT's expert config) or lora:DOMAIN=FILE "
            "(targets of PEFT). May be repeated.",
        ),
    ] = field(default_factory=list)
    export_score: Annotated[
        Literal["token", "gate"],
        typer.Option(
            "--export-score",
            metavar="token|gate",
            help="Experts of a domain by choices, or weights.",
            show_default=True,
        ),
    ] = "token"
    export_share: Annotated[
        float,
        typer.Option(
            "--export-share", metavar="P", min=0.0, max=1.0, help="Share that they reach together.", show_default=True
        ),
    ] = 0.2


@dataclass(frozen=True, slots=True)
class CausalOptions:
    """Whether specialists are masked."""

    ablate: Annotated[
        int,
        typer.Option(
            "--ablate",
            metavar="N",
            min=0,
            help="Mask the N surest specialists of each domain in the router, alone and together, and measure the loss"
            " of every domain.",
        ),
    ] = 0


@with_options
def specialize(
    context: typer.Context,
    models: RoutingArgument,
    which: ModelOptions,
    run: RunOptions,
    keep: TraceOptions,
    causal: CausalOptions,
    exports: ExportOptions,
    output: OutputOptions,
) -> None:
    """Which expert prefers which domain, language or kind of token, and how sure that is.

    Needs at least two domains: --text NAME=FILE for each. demo reads its own six if no --text is given.
    """
    targets = parse_targets(exports.export)

    def produce(progress: Progress) -> Report:
        from moetool.commands.specialize import make_report, study

        options = reported_options(models, which.revision, run)
        if causal.ablate:
            refuse_ranks()
            source = refuse_traces(models, "--ablate")
            model = read_input(source, which.revision, run, progress, least_domains=2)
            check_domains(targets, sorted({document.domain for document in model[1]}))
            trace = capture_input(*model, keep, progress)
        else:
            trace = read_routing(models, which.revision, run, keep, progress, least_domains=2)
            check_domains(targets, trace.domains)
        result = study(trace, options, progress)
        ablation = None
        if causal.ablate:
            from moetool.commands.specialize_ablation import ablate

            options["ablate"] = causal.ablate
            ablation = ablate(*model, trace, result, causal.ablate, run.seed, progress)
        report = make_report(trace, result, options, ablation)
        write_targets(targets, trace, result, report, exports.export_score, exports.export_share)
        return report

    run_report(context, output, SUMMARY_COLUMNS, produce)
