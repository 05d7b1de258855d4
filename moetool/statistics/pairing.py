"""Whether two traces can be compared token by token: two RoutingTraces enter, the same two with joint marks leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from moetool.capture.trace import RoutingTrace, TraceDocument
from moetool.errors import MoetoolError

_BY_REPORTS = "save the route-stats report of both as JSON, and compare the two files"
_OTHER_TEXT = "the texts differ: give both the same --text, with nothing added, left out or changed"
_MOST_RUNS = 8
Name = Literal["id", "domain", "group"]
NAMES: tuple[Name, ...] = ("id", "domain", "group")
"""What a document is called, which changes none of its tokens."""


def pair_traces(first: RoutingTrace, second: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    """The traces, called A and B, with A's documents and with the tokens special that are so in one of them.

    Model, settings, types and the names of documents may differ. Raises MoetoolError at the first difference of token
    ids, of where documents end, or of layers (number, part, experts, experts per token), and for a trace of loads
    alone.
    """
    for side, trace in zip("AB", (first, second), strict=True):
        if trace.load_only:
            raise MoetoolError(
                f"{_called(side, trace)} is a recording of loads only: which token chose what is not known", _BY_REPORTS
            )
    _check_layers(first, second)
    _check_documents(first, second)
    _check_tokens(first, second)
    if second.domains != first.domains:
        # Its rows are of its own domains, and no comparison needs it.
        second = replace(second, layers=tuple(replace(layer, probability=None) for layer in second.layers))
    special = first.special | second.special
    return replace(first, special=special), replace(second, special=special, documents=first.documents)


def renamed_documents(first: RoutingTrace, second: RoutingTrace) -> dict[Name, tuple[TraceDocument, TraceDocument]]:
    """By what they are called differently: the first such documents of two traces that can be paired."""
    pairs = list(zip(first.documents, second.documents, strict=True))
    found = {
        name: next((pair for pair in pairs if getattr(pair[0], name) != getattr(pair[1], name)), None) for name in NAMES
    }
    return {name: pair for name, pair in found.items() if pair is not None}


def _called(side: str, trace: RoutingTrace) -> str:
    name = trace.model.get("name")
    return f"{side} ({name})" if name else side


def _check_documents(first: RoutingTrace, second: RoutingTrace) -> None:
    for number, (own, other) in enumerate(zip(first.documents, second.documents, strict=False), 1):
        if own.tokens != other.tokens:
            what = f"document {number}, {own.id!r}, has {own.tokens} tokens in A and {other.tokens} in B"
            raise MoetoolError(f"{_both(first, second)} did not read the same tokens: {what}",
                               _remedy(first, second, number - 1))  # fmt: skip
    counts = len(first.documents), len(second.documents)
    if counts[0] != counts[1]:
        raise MoetoolError(
            f"{_both(first, second)} did not read the same documents: there are {counts[0]} in A and {counts[1]} in B",
            _remedy(first, second, min(counts)),
        )


def _check_tokens(first: RoutingTrace, second: RoutingTrace) -> None:
    different = first.tokens != second.tokens
    if not different.any():
        return
    index = int(np.argmax(different))
    number = int(first.document_of_token()[index])
    document = first.documents[number]
    ids = int(first.tokens[index]), int(second.tokens[index])
    texts = [f"{id} {trace.vocabulary.get(id, '')!r}" for id, trace in zip(ids, (first, second), strict=True)]
    raise MoetoolError(
        f"{_both(first, second)} did not read the same tokens: token {index - document.start} of document "
        f"{document.id!r} is {texts[0]} in A and {texts[1]} in B",
        _remedy(first, second, number),
    )


def _both(first: RoutingTrace, second: RoutingTrace) -> str:
    return f"{_called('A', first)} and {_called('B', second)}"


def _remedy(first: RoutingTrace, second: RoutingTrace, number: int) -> str:
    """What to do about traces whose documents differ from ``number`` on."""
    texts = [[document.sha256 for document in trace.documents] for trace in (first, second)]
    own, other = (hashes[number] if number < len(hashes) else "" for hashes in texts)
    same_text = bool(own) and own == other
    if same_text and not _start_alike(first, second, number):
        return f"the text is the same, their tokenizers are not: {_BY_REPORTS}"
    if all(texts[0] + texts[1]) and not set(texts[0]) & set(texts[1]):
        return _OTHER_TEXT
    for name in ("max_tokens", "max_length") if same_text else ("max_tokens", "seed"):
        limits = [trace.settings.get(name) for trace in (first, second)]
        if limits[0] != limits[1] and (name != "seed" or first.settings.get("max_tokens")):
            said = ["all" if limit is None else limit for limit in limits]
            return f"give both the same --{name.replace('_', '-')}: it was {said[0]} for A and {said[1]} for B"
    if all(texts[0]) and sorted(texts[0]) == sorted(texts[1]):
        return "the documents are the same in another order: give both their --text in one order"
    return _OTHER_TEXT


def _start_alike(first: RoutingTrace, second: RoutingTrace, number: int) -> bool:
    """Whether one reading of a document is a part of the other."""
    own, other = first.documents[number], second.documents[number]
    length = min(own.tokens, other.tokens)
    start, other_start = own.start, other.start
    return np.array_equal(first.tokens[start : start + length], second.tokens[other_start : other_start + length])


def _check_layers(first: RoutingTrace, second: RoutingTrace) -> None:
    numbers = [[layer.layer for layer in trace.layers] for trace in (first, second)]
    if numbers[0] != numbers[1]:
        sides = [f"{_runs(own)} in {_called(side, trace)}"
                 for side, own, trace in zip("AB", numbers, (first, second), strict=True)]  # fmt: skip
        config = first.model.get("config_sha256")
        raise MoetoolError(
            f"MoE layers: {' and '.join(sides)}; they cannot be compared layer by layer",
            "capture both with the same --layers"
            if config and config == second.model.get("config_sha256")
            else _BY_REPORTS,
        )
    for own, other in zip(first.layers, second.layers, strict=True):
        for field, title in (("experts", "experts"), ("experts_per_token", "experts per token"), ("part", "part")):
            values = (getattr(own, field), getattr(other, field))
            if values[0] != values[1]:
                sides = [f"{value or 'none'} in {_called(side, trace)}"
                         for side, value, trace in zip("AB", values, (first, second), strict=True)]  # fmt: skip
                raise MoetoolError(
                    f"{title} of layer {own.layer}: {' and '.join(sides)}; their choices cannot be compared token by "
                    "token",
                    _BY_REPORTS,
                )


def _runs(numbers: list[int]) -> str:
    """``0-3, 7``."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    runs = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True)]
    return ", ".join(runs if len(runs) <= _MOST_RUNS else [*runs[: _MOST_RUNS - 2], "...", runs[-1]]) or "none"
