"""``import``: recordings of other tools enter, a trace folder and the Report of what is in it leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from moetool.capture.imports import reader_of
from moetool.capture.imports.assemble import Source, assemble
from moetool.capture.imports.recording import Known, KnownModel, Reader, Recording
from moetool.capture.store import write_trace
from moetool.capture.trace import check_trace, open_trace
from moetool.commands.capture import build_report
from moetool.corpus.documents import split_argument
from moetool.errors import MoetoolError
from moetool.model.families import family_of
from moetool.progress import Progress
from moetool.report.report import Report, Value


def describe_model(
    name: str | None,
    revision: str | None,
    experts: int | None,
    experts_per_token: int | None,
    decoder_layers: int | None,
) -> Known:
    """What options say of the recorded model; MoetoolError where there is no such model, or it has no experts."""
    if name is None:
        if revision is not None:
            raise MoetoolError(f"--revision {revision} goes with --model MODEL", "leave --revision out")
        return Known(None, experts, experts_per_token, decoder_layers)
    from moetool.commands.memory import find_model, make_subject
    from moetool.commands.memory_section import MemorySettings

    checkpoint = find_model(name, revision)
    facts = make_subject(checkpoint, MemorySettings()).facts
    if not facts.moe_layers:
        raise MoetoolError(f"{name} has no routed experts", "name the model that was recorded")
    identity = {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "family": facts.family,
        "config_sha256": checkpoint.config_sha256,
    }
    scoring = family_of(checkpoint.config).scoring
    return Known(KnownModel(facts, identity, scoring), experts, experts_per_token, decoder_layers)


def import_trace(
    format_name: str, arguments: Sequence[str], known: Known, out: Path, overwrite: bool, progress: Progress
) -> Report:
    """Read every ``[NAME=]SOURCE``, write the trace of all of them, and describe it.

    Nothing is written before everything was read and checked. Raises MoetoolError for a source that is missing or
    malformed, naming file and record, and for a folder that holds anything else.
    """
    read = reader_of(format_name)
    sources: list[Source] = []
    places = _places(arguments)
    with progress.step("reading", len(places)) as advance:
        for domain, path in places:
            sources.append(Source(domain, path, _read(read, path, known, progress.note)))
            advance(1)
    trace = assemble(format_name, sources, known, progress.note)
    check_trace(trace, str(sources[0].path))
    write_trace(trace, out, overwrite)
    options: dict[str, Value | Sequence[Value]] = {
        "format": format_name,
        "sources": list(arguments),
        "model": None if known.model is None else known.model.facts.name,
        "experts": known.experts,
        "experts_per_token": known.experts_per_token,
        "decoder_layers": known.decoder_layers,
        "out": str(out),
    }
    return build_report(open_trace(out), out, options, command="import")


def _read(read: Reader, path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    try:
        return read(path, known, note)
    except MemoryError:
        raise MoetoolError(f"{path} does not fit into memory", "import a part of it") from None


def _places(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Domain and path of every ``[NAME=]SOURCE``."""
    places: list[tuple[str, Path]] = []
    for argument in arguments:
        name, path = split_argument(argument, "SOURCE")
        if not path.exists():
            raise MoetoolError(f"there is no {path}", "check the path; NAME=SOURCE names a domain")
        if path.resolve() in [other.resolve() for _, other in places]:
            raise MoetoolError(f"{path} is given twice", "name each recording once")
        places.append((name or (path.resolve().name if path.is_dir() else path.stem), path))
    return places
