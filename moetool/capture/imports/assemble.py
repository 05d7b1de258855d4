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

_UNKNOWN_MODEL = {"name": "unknown", "revision": None, "family": None, "config_sha256": ""}


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
    layers = tuple(_layer(number, sources, known) for number in sources[0].recording.layers)
    guessed = [layer for layer in layers if sources[0].recording.layers[layer.layer].experts is None]
    if guessed:
        note(
            f"the recording does not say how many experts there are: {guessed[0].experts}, by the highest id; "
            "--experts N or --model MODEL would count those that no token chose"
        )
    settings: dict[str, Any] = {"format": format, "sha256": _digest(layers)}
    if sources[0].recording.load_only:
        settings["load_only"] = True
    return RoutingTrace(
        _UNKNOWN_MODEL if known.model is None else known.model.identity,
        documents,
        np.concatenate([_token_ids(source.recording) for source in sources]),
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
    names = [(source.domain, source.path.stem) for source in sources]
    for number, source in enumerate(sources, 1):
        # Files of one name are told apart, or their documents would be taken for one group.
        prefix = f"{number}/" if names.count(names[number - 1]) > 1 else ""
        for document in source.recording.documents:
            id = prefix + document.id
            documents.append(TraceDocument(id, source.domain, id, start, document.tokens, "", document.prompt_tokens))
            start += document.tokens
    return tuple(documents)


def _layer(number: int, sources: Sequence[Source], known: Known) -> TraceLayer:
    recorded = [source.recording.layers[number] for source in sources]
    # Without anybody's word the routers of all layers are taken to be alike.
    experts = recorded[0].experts or 1 + max(
        int(layer.chosen.max(initial=0)) for source in sources for layer in source.recording.layers.values()
    )
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


def _digest(layers: Sequence[TraceLayer]) -> str:
    """Of all choices and weights: only the same recording completes a trace whose writing was interrupted."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(layer.chosen.tobytes())
        digest.update(b"" if layer.weight is None else layer.weight.tobytes())
    return digest.hexdigest()


def _token_ids(recording: Recording) -> NDArray[np.int32]:
    if recording.token_ids is not None:
        return recording.token_ids
    return np.zeros(sum(document.tokens for document in recording.documents), dtype=np.int32)
