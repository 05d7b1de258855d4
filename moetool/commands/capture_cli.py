"""``moetool capture`` on the command line: a model and text enter, a trace folder and its description leave."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.commands.capture import SUMMARY_COLUMNS
from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import read_input, reported_options
from moetool.commands.run import run_report
from moetool.errors import MoetoolError
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Report

if TYPE_CHECKING:
    from moetool.capture.ranks import Rank


@with_options
def capture(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="demo, a folder or a hub id.")],
    which: ModelOptions,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the trace is written, or resumed.")],
    run: RunOptions,
    output: OutputOptions,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the trace that is in the folder.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Capture part I of N of the corpus (1/N to N/N); commands that read traces join the parts.",
        ),
    ] = None,
) -> None:
    """Run a model once and keep the routing of every token.

    Other commands read the trace as often as needed. An interrupted capture goes on where it stopped if the same
    command is given again. Started by torchrun, the processes share the work and write one trace.
    """
    from moetool.capture.ranks import find_rank

    rank = find_rank()
    if rank is not None and shard is not None:
        raise MoetoolError(
            f"rank {rank.index}: --shard {shard}: torchrun's processes share the work already", "leave --shard out"
        )
    keep = TraceOptions(out, overwrite)

    def produce(progress: Progress) -> Report:
        from moetool.capture.trace import open_trace
        from moetool.commands.capture import build_report

        _write(model, which, run, keep, shard, rank, progress)
        options = reported_options([model], which.revision, run)
        return build_report(open_trace(out), out, {**options, "out": str(out), "shard": shard})

    if rank is None or rank.first:
        run_report(context, output, SUMMARY_COLUMNS, produce, pictures=False)
    else:
        _write(model, which, run, keep, shard, rank, SilentProgress())


def _write(
    model: str,
    which: ModelOptions,
    run: RunOptions,
    keep: TraceOptions,
    shard: str | None,
    rank: Rank | None,
    progress: Progress,
) -> None:
    """Write the trace, or this rank's part of it; the first rank returns when it is joined."""
    from moetool.capture.ranks import meeting

    folder = keep.save_trace
    assert folder is not None, "--out is required"
    with meeting(rank) if rank else nullcontext() as group:  # first, for the others may be quicker with the rest
        checkpoint, documents, settings = read_input(model, which.revision, run, progress)
        from moetool.capture.engine import capture
        from moetool.capture.together import capture_together

        if group is None:
            settings = replace(settings, shard=shard)
            capture(checkpoint, documents, settings, folder=folder, overwrite=keep.overwrite, progress=progress)
        else:
            capture_together(
                checkpoint, documents, settings, group, folder=folder, overwrite=keep.overwrite, progress=progress
            )
