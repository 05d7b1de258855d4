"""Small synthetic traces: arrays enter, a RoutingTrace in memory or its folder leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import (
    SCHEMA,
    RoutingTrace,
    TraceDocument,
    TraceLayer,
    chosen_dtype,
    describe_document,
    layer_file,
)

Array = NDArray[Any]


def make_trace(
    chosen: Sequence[Any],
    experts: int | None = None,
    *,
    lengths: Sequence[int] | None = None,
    domains: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    special: Sequence[int] = (),
    weight: Sequence[Any] | None = None,
    scores: Sequence[Any] | None = None,
    probability: Sequence[Any] | None = None,
    scoring: str | None = "softmax",
) -> RoutingTrace:
    """One layer per ``[T, K]`` array of ``chosen``; one document unless ``lengths`` says otherwise.

    ``experts`` defaults to the highest id + 1; ``special`` lists token positions; the other arrays come one per layer.
    """
    arrays = [np.asarray(array) for array in chosen]
    tokens = len(arrays[0])
    lengths = [tokens] if lengths is None else list(lengths)
    assert sum(lengths) == tokens
    starts = np.cumsum([0, *lengths]).tolist()
    documents = tuple(
        TraceDocument(
            id=f"document {index}",
            domain="text" if domains is None else domains[index],
            group=f"group {index}" if groups is None else groups[index],
            start=starts[index],
            tokens=length,
            sha256="",
        )
        for index, length in enumerate(lengths)
    )
    mask = np.zeros(tokens, bool)
    mask[list(special)] = True
    layers = []
    for index, array in enumerate(arrays):
        count = int(array.max()) + 1 if experts is None else experts
        parts = [None if part is None else np.asarray(part[index]) for part in (weight, scores, probability)]
        layers.append(TraceLayer(index, count, array.shape[1], scoring, array.astype(chosen_dtype(count)), *parts))
    model = {"name": "synthetic", "revision": None, "family": "test", "config_sha256": ""}
    return RoutingTrace(model, documents, np.arange(tokens, dtype=np.int32), mask, {}, tuple(layers), {}, {})


def split_trace(trace: RoutingTrace, document: int) -> list[RoutingTrace]:
    """Two traces: the documents before ``document`` and the rest. ``probability`` must be the same for all tokens."""
    cut = trace.documents[document].start
    parts = []
    for first, last, start, stop in ((0, document, 0, cut), (document, None, cut, len(trace.tokens))):
        documents = [
            TraceDocument(**{**asdict(old), "start": old.start - start}) for old in trace.documents[first:last]
        ]
        names = dict.fromkeys(old.domain for old in documents)
        rows = [trace.domains.index(name) for name in names]
        layers = tuple(
            TraceLayer(
                layer.layer,
                layer.experts,
                layer.experts_per_token,
                layer.scoring,
                layer.chosen[start:stop],
                None if layer.weight is None else layer.weight[start:stop],
                None if layer.scores is None else layer.scores[start:stop],
                None if layer.probability is None else layer.probability[rows],
            )
            for layer in trace.layers
        )
        tokens, special = trace.tokens[start:stop], trace.special[start:stop]
        parts.append(RoutingTrace(trace.model, tuple(documents), tokens, special, {}, layers, {}, {}))
    return parts


def random_trace(
    seed: int, experts: int, experts_per_token: int, lengths: Sequence[int], layers: int = 1, **kwargs: Any
) -> RoutingTrace:
    """Unequal loads, unsorted weights, two domains, all arrays present."""
    random = np.random.default_rng(seed)
    tokens = sum(lengths)
    domains = [f"domain {index % 2}" for index in range(len(lengths))]
    logits = random.normal(size=(layers, tokens, experts)) + random.normal(size=(layers, 1, experts))
    probability = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    chosen = np.argsort(-logits, axis=2)[:, :, :experts_per_token]
    chosen = random.permuted(chosen, axis=2)
    entropy = -(probability * np.log(probability)).sum(axis=2)
    ranked = -np.sort(-logits, axis=2)
    margin = np.full((layers, tokens), np.nan)
    if experts > experts_per_token:
        margin = ranked[:, :, experts_per_token - 1] - ranked[:, :, experts_per_token]
    scores = np.stack([entropy, probability.max(axis=2), margin, np.log(np.exp(logits).sum(axis=2))], axis=2)
    mean = np.repeat(probability.mean(axis=1, keepdims=True), len(set(domains)), axis=1)
    parts: Mapping[str, Any] = {
        "weight": np.take_along_axis(probability, chosen, axis=2),
        "scores": scores,
        "probability": mean,
    }
    return make_trace(chosen, experts, lengths=lengths, domains=domains, **{**parts, **kwargs})


def save_trace(trace: RoutingTrace, folder: Path) -> Path:
    """Write the folder of design.md section 4; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "schema": SCHEMA,
        "model": dict(trace.model),
        "layers": [
            {key: getattr(layer, key) for key in ("layer", "experts", "experts_per_token", "scoring")}
            for layer in trace.layers
        ],
        "documents": [describe_document(document) for document in trace.documents],
        "settings": dict(trace.settings),
        "versions": dict(trace.versions),
    }
    (folder / "trace.json").write_text(json.dumps(header), encoding="utf-8")
    (folder / "vocabulary.json").write_text(json.dumps(dict(trace.vocabulary)), encoding="utf-8")
    np.save(folder / "tokens.npy", trace.tokens)
    np.save(folder / "special.npy", trace.special)
    for layer in trace.layers:
        for part in ("chosen", "weight", "scores", "probability"):
            array = getattr(layer, part)
            if array is not None:
                np.save(folder / layer_file(layer.layer, part), array)
    return folder
