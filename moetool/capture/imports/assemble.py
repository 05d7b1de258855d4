"""Recordings of one model enter, one RoutingTrace of all their documents leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool import __version__
from moetool.capture.imports.recording import Known, RecordedLayer, Recording
from moetool.capture.trace import RoutingTrace, TraceDocument, TraceLayer, chosen_dtype
from moetool.errors import MoetoolError


@dataclass(frozen=True, slots=True)
class Source:
    """A recording, where it came from and the domain of its documents."""

    domain: str
    path: Path
    recording: Recording


def assemble(format: str, sources: Sequence[Source], known: Known, note: Callable[[str], None]) -> RoutingTrace:
    """The trace of the documents of all sources, in their order; each document is a group of its own.

    MoetoolError where layers, experts per token or kinds of recording differ. Where nobody says how many experts there
    are it is the highest id + 1, and ``note`` is told.
    """
    _check_alike(sources)
    documents = _documents(sources)
    tokens = sum(document.tokens for document in documents)
    if not tokens:
        raise MoetoolError(f"{sources[0].path} holds no token", "record some text")
    _note_losses(sources, note)
    layers = _layers(sources, known, note)
    token_ids = np.concatenate([_token_ids(source.recording) for source in sources])
    settings: dict[str, Any] = {"format": format, "sha256": _digest(token_ids, layers)}
    if sources[0].recording.load_only:
        settings["load_only"] = True
    nameless = {"name": f"{format} recording", "revision": None, "family": None, "config_sha256": ""}
    return RoutingTrace(
        nameless if known.model is None else known.model.identity,
        documents,
        token_ids,
        np.zeros(tokens, dtype=np.bool_),
        {},
        layers,
        settings,
        {"moetool": __version__},
    )


def _check_alike(sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources:
        ours, theirs = first.recording, other.recording
        if not theirs.layers:
            raise MoetoolError(f"{other.path} has no layer with a router")
        if list(ours.layers) != list(theirs.layers):
            raise MoetoolError(
                f"{first.path} has routing in layers {_listed(ours)}, {other.path} in {_listed(theirs)}",
                "import recordings of different models into different traces",
            )
        for number, layer in ours.layers.items():
            if layer.chosen.shape[1] != theirs.layers[number].chosen.shape[1]:
                raise MoetoolError(f"layer {number} has other experts per token in {first.path} than in {other.path}")
        if ours.load_only != theirs.load_only:
            raise MoetoolError(f"only one of {first.path} and {other.path} tells which token chose what",
                               "import them into different traces")  # fmt: skip


def _listed(recording: Recording) -> str:
    return " ".join(map(str, recording.layers))


def _documents(sources: Sequence[Source]) -> tuple[TraceDocument, ...]:
    documents: list[TraceDocument] = []
    start = 0
    ids = [(source.domain, document.id) for source in sources for document in source.recording.documents]
    for number, source in enumerate(sources, 1):
        # Documents of one name in one domain would be taken for one group.
        prefix = f"{number}/" if len(set(ids)) < len(ids) else ""
        for document in source.recording.documents:
            id = prefix + document.id
            documents.append(TraceDocument(id, source.domain, id, start, document.tokens, "", document.prompt_tokens))
            start += document.tokens
    return tuple(documents)


def _note_losses(sources: Sequence[Source], note: Callable[[str], None]) -> None:
    for part, what in (("weight", "weights"), ("dropped", "dropped experts")):
        for number in sources[0].recording.layers:
            lacking = [one.path for one in sources if getattr(one.recording.layers[number], part) is None]
            if 0 < len(lacking) < len(sources):
                note(f"{lacking[0]} has no {what} in layer {number}: those of the other recordings are left out")
                break


def _layers(sources: Sequence[Source], known: Known, note: Callable[[str], None]) -> tuple[TraceLayer, ...]:
    declared = {number: _declared_experts(number, sources) for number in sources[0].recording.layers}
    # Without anybody's word the routers of all layers are taken to be alike.
    guess = 1 + max(
        int(layer.chosen.max(initial=0)) for source in sources for layer in source.recording.layers.values()
    )
    if None in declared.values():
        note(
            f"the recording does not say how many experts there are: {guess}, by the highest id; "
            "--experts N or --model MODEL would count those that no token chose"
        )
    return tuple(_layer(number, experts or guess, sources, known) for number, experts in declared.items())


def _declared_experts(number: int, sources: Sequence[Source]) -> int | None:
    """The experts of a layer by those recordings that tell; MoetoolError where another one contradicts."""
    first = next((source for source in sources if source.recording.layers[number].experts is not None), None)
    if first is None:
        return None
    experts = first.recording.layers[number].experts
    assert experts is not None
    for source in sources:
        layer = source.recording.layers[number]
        highest = int(layer.chosen.max(initial=0))
        if layer.experts not in (None, experts) or highest >= experts:
            theirs = f"expert {highest} is chosen" if layer.experts is None else f"there are {layer.experts}"
            raise MoetoolError(
                f"layer {number} has {experts} experts in {first.path}, and in {source.path} {theirs}",
                "import recordings of different models into different traces",
            )
    return experts


def _layer(number: int, experts: int, sources: Sequence[Source], known: Known) -> TraceLayer:
    recorded = [source.recording.layers[number] for source in sources]
    return TraceLayer(
        layer=number,
        experts=experts,
        experts_per_token=recorded[0].chosen.shape[1],
        scoring=None if known.model is None else known.model.scoring,
        chosen=np.concatenate([layer.chosen.astype(chosen_dtype(experts)) for layer in recorded]),
        weight=_joined(recorded, "weight"),
        dropped=_joined(recorded, "dropped"),
        zero_experts=0 if known.model is None else known.model.facts.zero_experts,
    )


def _joined(recorded: Sequence[RecordedLayer], part: str) -> Any:
    """The arrays of all recordings one after another; None where one of them lacks it."""
    arrays = [getattr(layer, part) for layer in recorded]
    return None if any(array is None for array in arrays) else np.concatenate(arrays)


def _digest(token_ids: NDArray[np.int32], layers: Sequence[TraceLayer]) -> str:
    """Of all that was recorded: only the same recording completes a trace whose writing was interrupted."""
    digest = hashlib.sha256(token_ids.tobytes())
    for layer in layers:
        for part in (layer.chosen, layer.weight, layer.dropped):
            digest.update(b"-" if part is None else part.tobytes())
    return digest.hexdigest()


def _token_ids(recording: Recording) -> NDArray[np.int32]:
    if recording.token_ids is not None:
        return recording.token_ids
    return np.zeros(sum(document.tokens for document in recording.documents), dtype=np.int32)
