"""The options that commands share, as dataclasses that typer reads: the command line enters, plain values leave."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from moetool.report.explain import explain
from moetool.report.formats import PRINTABLE, SUFFIXES


def _known_format(name: str) -> str:
    if name not in PRINTABLE:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(PRINTABLE)}.")
    return name


def _complete_format(incomplete: str) -> list[str]:
    return [name for name in PRINTABLE if name.startswith(incomplete)]


def _explain(context: typer.Context, key: str | None) -> None:
    if key is not None and not context.resilient_parsing:
        typer.echo(explain(str(context.info_name), key))
        raise typer.Exit()


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the report is written; every command has these."""

    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="|".join(PRINTABLE),
            callback=_known_format,
            autocompletion=_complete_format,
            help="How the report is written to standard output.",
        ),
    ] = "text"
    json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False
    save: Annotated[
        list[Path],
        typer.Option(
            "--save", metavar="FILE", help=f"Also write the report to a file: {' '.join(SUFFIXES)}. May be repeated."
        ),
    ] = field(default_factory=list)
    fail_if: Annotated[
        list[str],
        typer.Option(
            "--fail-if",
            metavar="CHECK",
            help="Exit with 1 if a number of the summary is so: 'dead_experts > 0', 'total_bytes > 80 GiB',"
            " 'gini > baseline * 1.05'. May be repeated.",
        ),
    ] = field(default_factory=list)
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FILE", help="Saved JSON report that checks compare with."),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on standard error.")] = False
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="KEY",
            is_eager=True,
            callback=_explain,
            help="Only say what a number or column of this report means.",
        ),
    ] = None

    @property
    def printed_format(self) -> str:
        """The name of the format for standard output."""
        return "json" if self.json else self.format


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model is meant."""

    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of a model on the Hugging Face hub."),
    ] = None


DeviceOption = Annotated[
    str, typer.Option("--device", metavar="auto|cuda|mps|cpu", help="What the model runs on.", show_default=True)
]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype", metavar="NAME", help="What it computes in: auto, float32, bfloat16 or float16.", show_default=True
    ),
]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a model is run over text; names and defaults are those of ``CaptureOptions``."""

    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="[NAME=]FILE",
            help="Text to read, and the domain that it belongs to: .txt .jsonl .parquet or a folder. May be repeated.",
        ),
    ] = field(default_factory=list)
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    engine: Annotated[
        Literal["auto", "stream", "resident"],
        typer.Option(
            "--engine",
            metavar="auto|stream|resident",
            help="Layer by layer in little memory (stream), or loaded as a whole (resident).",
            show_default=True,
        ),
    ] = "auto"
    quantize: Annotated[
        Literal["8bit", "4bit"] | None,
        typer.Option(
            "--quantize",
            metavar="8bit|4bit",
            help="Quantise the linear layers at load, by bitsandbytes; merged experts stay as they are (resident).",
        ),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Tokens per domain; all of them by default.")
    ] = None
    max_length: Annotated[
        int, typer.Option("--max-length", metavar="N", min=1, help="Tokens per document.", show_default=True)
    ] = 2048
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            "--batch-tokens",
            metavar="N",
            min=1,
            help="Tokens per batch, padding included; by default what suits the device.",
        ),
    ] = None
    host_memory: Annotated[
        str | None,
        typer.Option(
            "--host-memory",
            metavar="SIZE",
            help="Memory for hidden states, such as 8GiB; more wait in files; half of the free by default.",
        ),
    ] = None
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of all random choices.", show_default=True)
    ] = 0
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="LIST", help="Decoder layers to capture, such as 0-3,7; all by default."),
    ] = None


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """Where a run keeps its trace."""

    save_trace: Annotated[
        Path | None,
        typer.Option("--save-trace", metavar="FOLDER", help="Keep the routing of every token: later commands read it."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the trace that is in the folder.")] = False


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take whole groups of options: typer sees the fields of each dataclass among its parameters.

    ::

        @with_options
        def memory(context: typer.Context, model: ModelArgument, output: OutputOptions) -> None: ...
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        parameters += _spell_out(groups[name]) if name in groups else [parameter.replace(kind=parameter.KEYWORD_ONLY)]

    @wraps(command)
    def spelled_out(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{part.name: values.pop(part.name) for part in fields(group)})
        command(**values)

    spelled_out.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    spelled_out.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spelled_out


def _spell_out(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            part.name, inspect.Parameter.KEYWORD_ONLY, default=_default(part), annotation=hints[part.name]
        )
        for part in fields(group)
    ]


def _default(part: Field[Any]) -> Any:
    if part.default_factory is not MISSING:
        return part.default_factory()
    return part.default
