"""Several traces of one model enter, one trace of all their documents leaves: in memory, or in a folder by layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import (
    MOST_COUNTED_TOKENS,
    RoutingTrace,
    TraceDocument,
    TraceLayer,
    TraceShard,
    mean_probability,
)
from moetool.errors import MoetoolError

if TYPE_CHECKING:
    from moetool.capture.store import TraceFolder  # whose hidden states need torch, and reading traces does not

PER_TOKEN = tuple(
    field.name
    for field in fields(TraceLayer)
    if str(field.type).startswith("NDArray") and not field.name.startswith("probability")
)
"""The arrays of a layer that have a row for each token."""
NUMERIC_SETTINGS = ("dtype", "quantize")
"""What changes routing itself, not only its last bits."""


def join_traces(traces: Sequence[RoutingTrace]) -> RoutingTrace:
    """One trace of the documents of several, which must come from the same model and layers.

    Documents follow each other as their traces do; shards of one whole go, as far as they are there, back into the
    order of the whole, and all of them are the whole, bit for bit. Raises MoetoolError where models or layers differ,
    or where a document occurs twice.
    """
    if len(traces) == 1:
        return traces[0]
    _check_same_model(traces)
    documents, slots = _order_documents(traces)
    first = traces[0]
    joined = RoutingTrace(
        first.model,
        documents,
        _join_arrays([trace.tokens for trace in traces], slots),
        _join_arrays([trace.special for trace in traces], slots),
        dict(sorted({key: text for trace in traces for key, text in trace.vocabulary.items()}.items())),
        (),
        first.settings,
        first.versions,
    )
    layers = tuple(_join_layer(traces, slots, joined.domains, index) for index in range(len(first.layers)))
    return replace(joined, layers=layers)


def join_shards(traces: Sequence[RoutingTrace], whole: TraceFolder, expected: Sequence[TraceDocument]) -> None:
    """Write the layers that a folder lacks of the whole that all these shards are, one layer in memory at a time.

    The folder has its tokens, vocabulary and the ``expected`` documents already; MoetoolError where the shards have
    others.
    """
    _check_same_model(traces)
    documents, slots = _order_documents(traces)
    if documents != tuple(expected):
        raise MoetoolError(f"the shards in {whole.folder} are not those of this corpus", "--overwrite begins anew")
    domains = tuple(dict.fromkeys(document.domain for document in documents))
    layers = [layer.layer for layer in traces[0].layers]
    for number in whole.missing_layers(layers):
        whole.save_layer(_join_layer(traces, slots, domains, layers.index(number)))


def missing_shards(traces: Sequence[RoutingTrace]) -> list[str]:
    """A sentence for every whole of which some shards only are given: one may have been forgotten."""
    given: dict[str, list[TraceShard]] = {}
    for trace in traces:
        if trace.shard is not None:
            given.setdefault(trace.shard.whole, []).append(trace.shard)
    sentences = []
    for shards in given.values():
        count, numbers = shards[0].count, {shard.index for shard in shards}
        missing = [str(number) for number in range(1, count + 1) if number not in numbers]
        if missing:
            sentences.append(f"{len(numbers)} of {count} shards of a corpus are given: without {', '.join(missing)}")
    return sentences


def _check_same_model(traces: Sequence[RoutingTrace]) -> None:
    first = traces[0]
    for other in traces[1:]:
        if _identity(other) != _identity(first):
            raise MoetoolError(
                f"traces of different models or layers cannot be joined: {first.model.get('name')} "
                f"and {other.model.get('name')}",
                "give traces of one model: the same config, revision and --layers",
            )
        for name in NUMERIC_SETTINGS:
            values = (first.settings.get(name), other.settings.get(name))
            if values[0] != values[1]:
                raise MoetoolError(
                    f"traces of different {name} cannot be joined: {values[0]} and {values[1]}",
                    "their routing differs for that reason alone: capture all parts with the same options",
                )


def _identity(trace: RoutingTrace) -> tuple[Any, ...]:
    layers = tuple((layer.layer, layer.experts, layer.experts_per_token, layer.zero_experts) for layer in trace.layers)
    return trace.model.get("config_sha256"), trace.model.get("revision"), trace.model.get("family"), layers


def _order_documents(traces: Sequence[RoutingTrace]) -> tuple[tuple[TraceDocument, ...], list[NDArray[np.int64]]]:
    """The documents of all traces in the order of the result, and for every trace where its tokens go ``[T]``.

    A whole comes where the first of its shards is; a trace that is no shard is a whole of its own.
    """
    wholes: dict[object, int] = {}
    keys = []
    for number, trace in enumerate(traces):
        whole = wholes.setdefault(number if trace.shard is None else trace.shard.whole, len(wholes))
        places = range(len(trace.documents)) if trace.shard is None else trace.shard.documents
        keys += [(whole, place, number, index) for index, place in enumerate(places)]
    documents: list[TraceDocument] = []
    starts = [np.zeros(len(trace.documents), dtype=np.int64) for trace in traces]
    start, seen = 0, set()
    for _, _, number, index in sorted(keys):
        document = traces[number].documents[index]
        key = (document.domain, document.id, document.sha256)
        if key in seen:
            raise MoetoolError(
                f"document {document.id!r} of domain {document.domain!r} is in two of the traces",
                "a document is counted once: join traces of different documents, with ids of their own",
            )
        seen.add(key)
        documents.append(replace(document, start=start))
        starts[number][index] = start
        start += document.tokens
    return tuple(documents), [_slots(trace, places) for trace, places in zip(traces, starts, strict=True)]


def _slots(trace: RoutingTrace, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[T]`` the new index of every token, from the new starts of the documents."""
    shift = starts - np.array([document.start for document in trace.documents], dtype=np.int64)
    return np.arange(len(trace.tokens)) + np.repeat(shift, [document.tokens for document in trace.documents])


def _join_arrays(parts: Sequence[NDArray[Any] | None], slots: Sequence[NDArray[np.int64]]) -> Any:
    """Rows of all parts ``[T, ...]`` in their new places; None where a part is missing."""
    arrays = [part for part in parts if part is not None]
    if len(arrays) < len(parts):
        return None
    tokens = sum(len(array) for array in arrays)
    joined = np.empty((tokens, *arrays[0].shape[1:]), dtype=np.result_type(*(array.dtype for array in arrays)))
    for array, places in zip(arrays, slots, strict=True):
        joined[places] = array
    return joined


def _join_layer(
    traces: Sequence[RoutingTrace], slots: Sequence[NDArray[np.int64]], domains: Sequence[str], index: int
) -> TraceLayer:
    parts = [trace.layers[index] for trace in traces]
    counted = np.zeros(len(domains), dtype=np.int64)
    for trace in traces:
        counted[_rows(trace, domains)] += trace.counted_tokens_of_domain()
    total = _join_sums(traces, parts, domains) if counted.max(initial=0) <= MOST_COUNTED_TOKENS else None
    return replace(
        parts[0],
        probability=_join_means(traces, parts, domains) if total is None else mean_probability(total, counted),
        probability_sum=total,
        **{name: _join_arrays([getattr(part, name) for part in parts], slots) for name in PER_TOKEN},
    )


def _rows(trace: RoutingTrace, domains: Sequence[str]) -> list[int]:
    """Where the domains of a trace are among those of all."""
    return [domains.index(domain) for domain in trace.domains]


def _join_sums(
    traces: Sequence[RoutingTrace], parts: Sequence[TraceLayer], domains: Sequence[str]
) -> NDArray[np.int64] | None:
    """Sums of probabilities per domain, exactly; None where a trace has none."""
    total = np.zeros((len(domains), parts[0].experts), dtype=np.int64)
    for trace, part in zip(traces, parts, strict=True):
        if part.probability_sum is None:
            return None
        total[_rows(trace, domains)] += part.probability_sum
    return total


def _join_means(
    traces: Sequence[RoutingTrace], parts: Sequence[TraceLayer], domains: Sequence[str]
) -> NDArray[np.float32] | None:
    """Means per domain, weighted by the counted tokens of each trace."""
    total, weight = np.zeros((len(domains), parts[0].experts)), np.zeros(len(domains))
    for trace, part in zip(traces, parts, strict=True):
        if part.probability is None:
            return None
        rows, tokens = _rows(trace, domains), trace.counted_tokens_of_domain()
        total[rows] += np.where(tokens[:, None] > 0, part.probability, 0.0) * tokens[:, None]
        weight[rows] += tokens
    return (total / np.maximum(weight, 1)[:, None]).astype(np.float32)
