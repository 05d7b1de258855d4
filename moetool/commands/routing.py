"""Where the routing comes from: ``MODEL|TRACE...`` and the run options enter, a RoutingTrace leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moetool.checkpoint.sizes import parse_size
from moetool.commands.options import RunOptions, TraceOptions
from moetool.errors import MoetoolError
from moetool.progress import Progress

if TYPE_CHECKING:
    from moetool.capture.engine import CaptureOptions
    from moetool.capture.trace import RoutingTrace
    from moetool.checkpoint.types import Checkpoint
    from moetool.corpus.documents import Document
    from moetool.report.report import Value

DEMO_CORPORA = Path(__file__).parents[1] / "demo" / "corpora"

RoutingArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|TRACE",
        help="A model to run (demo, a folder or a hub id), or folders that moetool capture wrote, which are joined.",
        show_default=False,
    ),
]


def read_routing(
    names: Sequence[str],
    revision: str | None,
    options: RunOptions,
    keep: TraceOptions,
    progress: Progress,
    least_domains: int = 1,
) -> RoutingTrace:
    """Open and join traces, or run one model over ``--text``, keeping its trace where that is asked for.

    Raises MoetoolError for a mixture of both, for options that do not apply, and for whatever a run raises.
    """
    refuse_ranks()
    if any(is_trace_folder(name) for name in names):
        return _join(names, options, keep, progress)
    if len(names) > 1:
        raise MoetoolError(
            f"{names[0]} and {names[1]} are not both traces: only traces can be joined",
            "run one model at a time; moetool capture MODEL --text FILE --out TRACE keeps its routing",
        )
    return run_model(names[0], revision, options, keep, progress, least_domains)


def run_model(
    name: str,
    revision: str | None,
    options: RunOptions,
    keep: TraceOptions,
    progress: Progress,
    least_domains: int = 1,
) -> RoutingTrace:
    """Run one model over ``--text``, keeping its trace where that is asked for."""
    return capture_input(*read_input(name, revision, options, progress, least_domains), keep, progress)


def capture_input(
    checkpoint: Checkpoint,
    documents: tuple[Document, ...],
    settings: CaptureOptions,
    keep: TraceOptions,
    progress: Progress,
) -> RoutingTrace:
    """Run what ``read_input`` found, keeping its trace where that is asked for."""
    from moetool.capture.engine import capture

    return capture(checkpoint, documents, settings, folder=keep.save_trace, overwrite=keep.overwrite, progress=progress)


def refuse_traces(names: Sequence[str], option: str) -> str:
    """The one model that is named, for an option that has to run it."""
    if len(names) > 1 or is_trace_folder(names[0]):
        raise MoetoolError(f"{option} runs the model, and a trace has none", "name the model instead, with its --text")
    return names[0]


def read_input(
    name: str, revision: str | None, options: RunOptions, progress: Progress, least_domains: int = 1
) -> tuple[Checkpoint, tuple[Document, ...], CaptureOptions]:
    """Model, corpus and settings of a run; the corpus is read first, because a wrong one is found at once."""
    from moetool.corpus.documents import read_corpus

    documents = read_corpus(corpus_arguments(name, options.text))
    domains = sorted({document.domain for document in documents})
    if len(domains) < least_domains:
        raise MoetoolError(
            f"there is one domain of text only ({domains[0]}): there is nothing to compare it with",
            "give a file per domain: --text code=code.jsonl --text law=law.jsonl",
        )
    checkpoint = locate_to_run(name, revision, progress)
    with progress.step("starting torch and transformers"):
        from moetool.capture.engine import CaptureOptions
    settings = CaptureOptions(
        device=options.device,
        dtype=options.dtype,
        engine=options.engine,
        quantize=options.quantize,
        max_tokens=options.max_tokens,
        max_length=options.max_length,
        batch_tokens=options.batch_tokens,
        seed=options.seed,
        layers=options.layers,
        host_memory_bytes=_host_memory(options.host_memory),
    )
    return checkpoint, documents, settings


def locate_to_run(name: str, revision: str | None, progress: Progress) -> Checkpoint:
    """The checkpoint of a model that is to run; MoetoolError for a preset, which has no weights."""
    from moetool.checkpoint.locate import locate

    _refuse_preset(name)
    with progress.step(f"locating {name}"):
        return locate(name, revision, weights="files")


def _refuse_preset(name: str) -> None:
    from moetool.model.presets import PRESETS

    if name in PRESETS and not Path(name).exists():
        raise MoetoolError(
            f"{name} is a preset, which has no weights to run", f"name the checkpoint: {PRESETS[name].hub_id}"
        )


def _host_memory(text: str | None) -> int | None:
    size = None if text is None else parse_size(text)
    if text is not None and not size:
        raise MoetoolError(f"--host-memory {text!r} is no size", "write a size such as 8GiB or 8GB")
    return size


def refuse_ranks() -> None:
    """MoetoolError under torchrun."""
    from moetool.capture.ranks import find_rank

    rank = find_rank()
    if rank is not None:
        raise MoetoolError(
            f"rank {rank.index}: several processes can capture together, but only one reports",
            "torchrun ... -m moetool capture MODEL --text FILE --out TRACE; then this command on TRACE, on its own",
        )


def is_trace_folder(name: str) -> bool:
    """Whether an argument is a trace and not a model."""
    return (Path(name) / "trace.json").is_file()


def _join(names: Sequence[str], options: RunOptions, keep: TraceOptions, progress: Progress) -> RoutingTrace:
    from moetool.capture.join import join_traces, missing_shards
    from moetool.capture.trace import open_trace

    given = {
        "--text": options.text,
        "--layers": options.layers,
        "--max-tokens": options.max_tokens,
        "--batch-tokens": options.batch_tokens,
        "--device": options.device != "auto",
        "--dtype": options.dtype != "auto",
        "--engine": options.engine != "auto",
        "--quantize": options.quantize,
        "--save-trace": keep.save_trace,
    }
    for option, value in given.items():
        if value:
            raise MoetoolError(f"{option} goes with a model to run, and {names[0]} is a trace", f"leave {option} out")
    twice = next(
        (name for name in names if [Path(other).resolve() for other in names].count(Path(name).resolve()) > 1), None
    )
    if twice is not None:
        raise MoetoolError(f"the trace {twice} is given twice", "name each trace once")
    traces = [open_trace(Path(name)) for name in names]
    for sentence in missing_shards(traces):
        progress.note(sentence)
    return join_traces(traces)


def corpus_arguments(model: str, text: Sequence[str]) -> list[str]:
    """``--text`` as given; the built-in corpora for ``demo`` without any."""
    if text:
        return list(text)
    if model == "demo":
        return [str(path) for path in sorted(DEMO_CORPORA.glob("*.jsonl"))]
    from moetool.checkpoint.locate import is_hub_id, locate

    hint = "--text NAME=FILE, once per domain: .txt, .jsonl, .parquet or a folder"
    if is_hub_id(model):
        raise MoetoolError(f"{model} is taken for a model on the hub, no file or folder, and needs text to read", hint)
    _refuse_preset(model)
    locate(model, weights="none")  # what is no model needs no text
    raise MoetoolError(f"{model} needs text to read", hint)


def reported_options(
    names: Sequence[str], revision: str | None, options: RunOptions
) -> dict[str, Value | Sequence[Value]]:
    """What a report repeats of the options: everything that its numbers depend on."""
    if is_trace_folder(names[0]):
        return {"sources": list(names), "seed": options.seed}
    return {
        "sources": list(names),
        "revision": revision,
        "text": list(options.text),
        "device": options.device,
        "dtype": options.dtype,
        "engine": options.engine,
        **({"quantize": options.quantize} if options.quantize else {}),
        "max_tokens": options.max_tokens,
        "max_length": options.max_length,
        "batch_tokens": options.batch_tokens,
        "seed": options.seed,
        "layers": options.layers,
    }
