"""``moetool compare`` on the command line: two traces, models or JSON reports enter, their differences leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moetool.commands.options import ModelOptions, OutputOptions, RunOptions, TraceOptions, with_options
from moetool.commands.routing import (
    capture_input,
    is_trace_folder,
    read_input,
    read_routing,
    refuse_ranks,
    reported_options,
)
from moetool.commands.run import run_report
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.report.report import Report

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class OtherOptions:
    """What is different about B where it is a model."""

    other_revision: Annotated[
        str | None, typer.Option("--other-revision", metavar="NAME", help="--revision of B, if another.")
    ] = None
    other_dtype: Annotated[
        str | None, typer.Option("--other-dtype", metavar="NAME", help="--dtype of B, if another.")
    ] = None
    other_quantize: Annotated[
        Literal["8bit", "4bit"] | None,
        typer.Option("--other-quantize", metavar="8bit|4bit", help="--quantize of B; A is as --quantize says."),
    ] = None


@with_options
def compare(
    context: typer.Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A trace, a model to run, or a JSON report.")],
    which: ModelOptions,
    run: RunOptions,
    others: OtherOptions,
    output: OutputOptions,
    second: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Another of the kind; without it model A again, as --other-... say."),
    ] = None,
) -> None:
    """How alike two models route the same tokens, or what differs between two reports.

    Traces (base and fine-tuned, two types, two training steps) must be of the same tokens; models are run over the
    same text first. JSON reports of one command are joined number by number.
    """
    from moetool.commands.compare_columns import summary_columns

    names = [first, first if second is None else second]
    _refuse_missing(names)
    if second is None and (others == OtherOptions() or not _is_model(first)):
        raise MoetoolError(
            f"{first} is to be compared with nothing", "name B too, or for a model --other-dtype, --other-revision, ..."
        )
    _refuse_options(names, which, run, others)

    def produce(progress: Progress) -> Report:
        from moetool.commands import compare, compare_reports

        if _is_report(first):
            return compare_reports.build_report(Path(names[0]), Path(names[1]), {"sources": names})
        options = reported_options(sorted(names, key=is_trace_folder), which.revision, run)
        given = {field.name: getattr(others, field.name) for field in fields(others)}
        options |= {"sources": names, **{name: value for name, value in given.items() if value is not None}}
        return compare.build_report(*_read_pair(names, which, run, others, progress), options, progress)

    run_report(context, output, summary_columns(), produce)


def _refuse_missing(names: Sequence[str]) -> None:
    """Raise MoetoolError for what is neither here nor could be on the hub, whatever the other is."""
    from moetool.checkpoint.locate import exists, is_hub_id
    from moetool.model.presets import PRESETS

    for name in names:
        if name == "demo" or name in PRESETS or exists(name):
            continue
        if Path(name).suffix == ".json":
            raise MoetoolError(f"there is no file {name}", "moetool COMMAND ... --save FILE.json writes a report")
        if not is_hub_id(name):
            raise MoetoolError(
                f"there is no trace, report or model {name!r}: no such file or folder",
                "name a folder of moetool capture, a JSON report, or a model: demo, a folder or a hub id",
            )


def _is_report(name: str) -> bool:
    return Path(name).is_file()


def _is_model(name: str) -> bool:
    return not _is_report(name) and not is_trace_folder(name)


def _refuse_options(names: Sequence[str], which: ModelOptions, run: RunOptions, others: OtherOptions) -> None:
    """Raise MoetoolError for a report beside something else, and for options that no model is there for."""
    if _is_report(names[0]) != _is_report(names[1]):
        report, other = names if _is_report(names[0]) else reversed(names)
        raise MoetoolError(
            f"{report} is a file, and {other} is none", "compare two JSON reports, or two traces or models"
        )
    groups: list[ModelOptions | RunOptions | OtherOptions] = [] if _is_model(names[1]) else [others]
    groups += [] if any(map(_is_model, names)) else [which, run]
    for group in groups:
        untouched = type(group)()
        for field in fields(group):
            if getattr(group, field.name) != getattr(untouched, field.name):
                option = f"--{field.name.replace('_', '-')}"
                raise MoetoolError(f"{option} goes with a model to run, and {names[1]} is none", f"leave {option} out")


def _read_pair(
    names: Sequence[str], which: ModelOptions, run: RunOptions, others: OtherOptions, progress: Progress
) -> tuple[RoutingTrace, RoutingTrace]:
    """Both traces; what can go wrong with either model, or with both together, goes wrong before one is run."""
    refuse_ranks()
    again = which.revision if names[0] == names[1] else None
    other_run = replace(run, dtype=others.other_dtype or run.dtype, quantize=others.other_quantize or run.quantize)
    wanted = ((names[0], which.revision, run), (names[1], others.other_revision or again, other_run))
    inputs = [read_input(*one, progress) if _is_model(one[0]) else None for one in wanted]
    keep = TraceOptions()

    def open_or(run_model: Callable[..., RoutingTrace]) -> Iterator[RoutingTrace]:
        for name, found in zip(names, inputs, strict=True):
            yield read_routing([name], None, RunOptions(), keep, progress) if found is None else run_model(*found)

    if any(inputs):
        from moetool.commands.compare_outline import outline
        from moetool.statistics.pairing import pair_traces

        pair_traces(*open_or(outline))
    first, second = open_or(partial(capture_input, keep=keep, progress=progress))
    return first, second
