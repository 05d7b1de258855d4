"""``moetool memory`` on the command line: a model's name and options enter, its report of costs leaves."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from typing import Annotated

import typer

from moetool.commands.options import ModelOptions, OutputOptions, with_options
from moetool.commands.run import run_report
from moetool.progress import Progress
from moetool.report.report import Report

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="demo, a folder, a .gguf file, a config.json, a preset or a hub id."),
]
_TOKENS = re.compile(r"(\d{1,15})\s*([kKmM]?)", re.ASCII)
MOST_SEQUENCES = 10**9
_BREAKDOWNS = ("component", "layer", "dtype", "tensor", "expert")


def _tokens(text: str | None) -> str | None:
    if text is not None and not _TOKENS.fullmatch(text.strip()):
        raise typer.BadParameter(f"{text!r} is no number of tokens, such as 131072 or 128k.")
    return text


def _breakdowns(names: list[str]) -> list[str]:
    for name in names:
        if name not in _BREAKDOWNS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(_BREAKDOWNS)}.")
    return names


def count_tokens(text: str | None) -> int | None:
    """``128k`` is 131,072 tokens: k and M are powers of two, as in the names of contexts."""
    match = _TOKENS.fullmatch(text.strip()) if text is not None else None
    return None if match is None else int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2].lower()]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What the model is to do."""

    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="TOKENS",
            callback=_tokens,
            help="Tokens of each sequence, such as 32768 or 32k; by default the model's longest, at most 128k.",
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option("--batch", metavar="N", min=1, max=MOST_SEQUENCES, help="Sequences at once.", show_default=True),
    ] = 1
    kv_dtype: Annotated[
        str,
        typer.Option(
            "--kv-dtype",
            metavar="auto|bf16|fp16|fp32|fp8|int8|fp4",
            help="Type of the cache; auto is bfloat16.",
            show_default=True,
        ),
    ] = "auto"
    kv_policy: Annotated[
        str,
        typer.Option(
            "--kv-policy",
            metavar="exact|reserve",
            help="What the layers need, or what engines set aside that give all layers pages of one size.",
            show_default=True,
        ),
    ] = "exact"
    training: Annotated[
        str | None,
        typer.Option("--training", metavar="adamw|adamw-8bit|sgd", help="Memory of training with this optimizer."),
    ] = None
    trace: Annotated[
        list[str],
        typer.Option(
            "--trace", metavar="FOLDER", help="Recorded routing, for the distinct experts of a batch. May be repeated."
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What it runs on."""

    gpus: Annotated[int | None, typer.Option("--gpus", metavar="N", min=1, help="GPUs: tp x pp x dp.")] = None
    tp: Annotated[
        int | None,
        typer.Option("--tp", metavar="N", min=1, help="Tensor parallelism: shards of matrices and of KV heads."),
    ] = None
    pp: Annotated[int, typer.Option("--pp", metavar="N", min=1, help="Pipeline stages.", show_default=True)] = 1
    dp: Annotated[
        int, typer.Option("--dp", metavar="N", min=1, help="Replicas that share the batch.", show_default=True)
    ] = 1
    ep: Annotated[
        int,
        typer.Option(
            "--ep", metavar="N", min=1, help="Ranks of a stage that share out whole experts.", show_default=True
        ),
    ] = 1
    redundant_experts: Annotated[
        int,
        typer.Option(
            "--redundant-experts", metavar="N", min=0, help="More replicas of experts per layer.", show_default=True
        ),
    ] = 0
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory",
            metavar="SIZE|NAME",
            help="Memory of one GPU, such as 80GiB or h100-80gb: does it fit, and what would?",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """What is counted and shown."""

    set: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="KEY=VALUE", help="What if the config said so? Counted from the config. May be repeated."
        ),
    ] = field(default_factory=list)
    compare: Annotated[str | None, typer.Option("--compare", metavar="MODEL", help="Another model, side by side.")] = (
        None
    )
    by: Annotated[
        list[str],
        typer.Option(
            "--by",
            metavar="component|layer|dtype|tensor|expert",
            callback=_breakdowns,
            help="Breakdown to show, instead of the first three. May be repeated.",
        ),
    ] = field(default_factory=list)
    check_config: Annotated[
        bool,
        typer.Option(
            "--check-config", help="Hold headers against the config for every family, with transformers: takes seconds."
        ),
    ] = False


@with_options
def memory(
    ctx: typer.Context,
    model: ModelArgument,
    which: ModelOptions,
    load: LoadOptions,
    devices: DeviceOptions,
    view: ViewOptions,
    output: OutputOptions,
) -> None:
    """What a model costs: parameters, bytes, cache, compute, GPUs.

    Only headers are read, no weights; a config.json alone is counted on an empty model.
    """
    from moetool.commands.memory import SUMMARY_COLUMNS, report_memory
    from moetool.commands.memory_section import MemorySettings

    settings = MemorySettings(
        context=count_tokens(load.context),
        batch=load.batch,
        kv_dtype=load.kv_dtype,
        kv_policy=load.kv_policy,
        gpus=devices.gpus,
        tp=devices.tp,
        pp=devices.pp,
        dp=devices.dp,
        ep=devices.ep,
        redundant_experts=devices.redundant_experts,
        gpu_memory=devices.gpu_memory,
        training=load.training,
        traces=tuple(load.trace),
        changes=tuple(view.set),
        compare=view.compare,
        by=tuple(view.by),
        check_config=view.check_config,
    )

    def produce(progress: Progress) -> Report:
        # 90,000 tensors are a million objects that live until the end: looking for garbage among them takes a tenth of
        # the time and finds none.
        enabled = gc.isenabled()
        gc.disable()
        try:
            return report_memory(model, which.revision, settings)
        finally:
            if enabled:
                gc.enable()

    run_report(ctx, output, SUMMARY_COLUMNS, produce)
