"""Whether two traces can be compared token by token: two RoutingTraces enter, the same two with joint marks leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moetool.capture.trace import RoutingTrace
from moetool.errors import MoetoolError

_SAME_RUN = "capture both with the same --text, --max-length, --max-tokens and tokenizer"


def pair_traces(first: RoutingTrace, second: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    """The traces, called A and B, with the tokens special that are so in one of them.

    Model, settings and types may differ. Raises MoetoolError at the first difference of documents (id, domain, group,
    length), token ids or layers (number, part, experts, experts per token), and for a trace of loads alone.
    """
    for name, trace in (("A", first), ("B", second)):
        if trace.load_only:
            raise MoetoolError(
                f"{name} is a recording of loads only: which token chose what is not known",
                "save the route-stats report of both as JSON, and compare the two files",
            )
    _check_documents(first, second)
    _check_tokens(first, second)
    _check_layers(first, second)
    special = first.special | second.special
    return replace(first, special=special), replace(second, special=special)


def _check_documents(first: RoutingTrace, second: RoutingTrace) -> None:
    for number, (own, other) in enumerate(zip(first.documents, second.documents, strict=False), 1):
        for field in ("id", "domain", "group", "tokens"):
            values = (getattr(own, field), getattr(other, field))
            if values[0] != values[1]:
                what = f"{field} {values[0]!r} in A and {values[1]!r} in B"
                raise MoetoolError(f"A and B are not of the same documents: document {number} has {what}", _SAME_RUN)
    if len(first.documents) != len(second.documents):
        counts = f"{len(first.documents)} in A and {len(second.documents)} in B"
        raise MoetoolError(f"A and B are not of the same documents: there are {counts}", _SAME_RUN)


def _check_tokens(first: RoutingTrace, second: RoutingTrace) -> None:
    different = first.tokens != second.tokens
    if not different.any():
        return
    index = int(np.argmax(different))
    document = first.documents[int(first.document_of_token()[index])]
    ids = int(first.tokens[index]), int(second.tokens[index])
    texts = [
        f"{number} {trace.vocabulary.get(number, '')!r}" for number, trace in zip(ids, (first, second), strict=True)
    ]
    raise MoetoolError(
        f"A and B are not of the same tokens: token {index - document.start} of document {document.id!r} is {texts[0]} "
        f"in A and {texts[1]} in B",
        _SAME_RUN,
    )


def _check_layers(first: RoutingTrace, second: RoutingTrace) -> None:
    numbers = [[layer.layer for layer in trace.layers] for trace in (first, second)]
    only = sorted(set(numbers[0]) ^ set(numbers[1]))
    if only:
        owner = "A" if only[0] in numbers[0] else "B"
        raise MoetoolError(
            f"A and B are not of the same layers: only {owner} has layer {only[0]}",
            "capture both with the same --layers",
        )
    for own, other in zip(first.layers, second.layers, strict=True):
        for field in ("experts", "experts_per_token", "part"):
            values = (getattr(own, field), getattr(other, field))
            if values[0] != values[1]:
                raise MoetoolError(
                    f"layer {own.layer} has {field} {values[0]} in A and {values[1]} in B: their choices cannot be "
                    "compared token by token",
                    "save the route-stats report of both as JSON, and compare the two files",
                )
