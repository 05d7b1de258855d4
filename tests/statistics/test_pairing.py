"""Which two traces can be compared token by token, and what is said of those that cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moetool.capture.trace import RoutingTrace
from moetool.errors import MoetoolError
from moetool.statistics.pairing import pair_traces, renamed_documents
from tests.statistics.test_agreement import pair
from tests.statistics.traces import make_trace, random_trace


def changed(trace: RoutingTrace, number: int, **changes: Any) -> RoutingTrace:
    """The trace with another document ``number``."""
    documents = list(trace.documents)
    documents[number] = replace(documents[number], **changes)
    return replace(trace, documents=tuple(documents))


def with_layer(trace: RoutingTrace, **changes: Any) -> RoutingTrace:
    return replace(trace, layers=(replace(trace.layers[0], **changes),))


def told(first: RoutingTrace, second: RoutingTrace) -> MoetoolError:
    with pytest.raises(MoetoolError) as caught:
        pair_traces(first, second)
    return caught.value


def test_pairs_share_their_special_tokens() -> None:
    first, second = pair()
    marked = replace(second, special=np.array([True, False, False, False, False]))
    assert [trace.special.tolist() for trace in pair_traces(first, marked)] == [[True, False, False, True, False]] * 2
    other = replace(second, model={"name": "tuned"}, settings={"dtype": "float16"}, vocabulary={0: "a"})
    assert pair_traces(first, other)[1].model == {"name": "tuned"}


def test_tokens_decide_and_not_names() -> None:
    first, second = (random_trace(seed, 5, 2, [4, 6, 3]) for seed in (0, 1))
    second = changed(changed(second, 0, group="a"), 1, id="docs#2", domain="z")
    assert second.layers[0].probability is not None
    paired = pair_traces(first, second)[1]
    assert paired.documents == first.documents
    assert paired.layers[0].probability is None  # rows of other domains
    found = renamed_documents(first, second)
    assert {name: (getattr(own, name), getattr(other, name)) for name, (own, other) in found.items()} == {
        "id": ("document 1", "docs#2"), "domain": ("domain 1", "z"), "group": ("group 0", "a"),
    }  # fmt: skip
    assert renamed_documents(first, first) == {}


MANY = [*range(0, 20, 2), 30, 31, 32]
REFUSED = {
    "A (synthetic) and B (synthetic) did not read the same documents: there are 2 in A and 1 in B": lambda trace: (
        replace(trace, documents=trace.documents[:1])
    ),
    "document 1, 'document 0', has 3 tokens in A and 2 in B": lambda trace: changed(
        changed(trace, 0, tokens=2), 1, start=2, tokens=3
    ),
    "token 1 of document 'document 1' is 4 'end' in A and 9 '' in B": lambda trace: replace(
        trace, tokens=np.array([0, 1, 2, 3, 9], np.int32)
    ),
    "MoE layers: 0 in A (synthetic) and 1 in B (synthetic)": lambda trace: with_layer(trace, layer=1),
    "and none in B": lambda trace: replace(trace, layers=()),
    "and 0, 2, 4, 6, 8, 10, ..., 30-32 in B (synthetic)": lambda trace: replace(
        trace, layers=tuple(replace(trace.layers[0], layer=number) for number in MANY)
    ),
    "experts of layer 0: 4 in A (synthetic) and 5 in B (synthetic)": lambda trace: with_layer(trace, experts=5),
    "experts per token of layer 0: 2 in A (synthetic) and 1 in B": lambda trace: with_layer(
        trace, experts_per_token=1, chosen=trace.layers[0].chosen[:, :1]
    ),
    "part of layer 0: none in A (synthetic) and decoder in B (synthetic)": lambda trace: with_layer(
        trace, part="decoder"
    ),
    "B (synthetic) is a recording of loads only": lambda trace: replace(trace, settings={"load_only": True}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_the_first_difference_is_named(message: str) -> None:
    first, second = pair()
    error = told(replace(first, vocabulary={4: "end"}), REFUSED[message](second))
    assert message in error.message
    assert error.hint


def test_layers_of_one_model_are_a_matter_of_options() -> None:
    first, second = (replace(trace, model={"name": "a", "config_sha256": "1"}) for trace in pair())
    assert "--layers" in str(told(first, with_layer(second, layer=1)).hint)
    other = replace(second, model={"name": "a", "config_sha256": "2"})
    assert "route-stats report" in str(told(first, with_layer(other, layer=1)).hint)


def read(texts: str, lengths: list[int], first_token: int = 0, **settings: Any) -> RoutingTrace:
    """A trace of documents with these hashes."""
    trace = make_trace([np.zeros((sum(lengths), 1), int)], lengths=lengths)
    documents = tuple(replace(one, sha256=text) for one, text in zip(trace.documents, texts, strict=True))
    starts = np.repeat([one.start for one in documents], lengths)
    return replace(
        trace, documents=documents, tokens=trace.tokens - starts.astype(np.int32) + first_token, settings=settings
    )


HINTS = {
    "their tokenizers are not": (read("ab", [3, 4]), read("ab", [3, 5], 7)),
    "the same --max-length: it was 4 for A and 9 for B": (
        read("ab", [3, 4], max_length=4), read("ab", [3, 9], max_length=9),
    ),
    "the same --max-tokens: it was all for A and 9 for B": (
        read("ab", [3, 4], seed=1), read("ab", [3, 2], max_tokens=9, seed=2),
    ),
    "the same --seed: it was 1 for A and 2 for B": (
        read("ab", [3, 4], max_tokens=9, seed=1), read("bc", [4, 2], max_tokens=9, seed=2),
    ),
    "in another order": (read("ab", [3, 4]), read("ba", [4, 3])),
    "the texts differ": (read("ab", [3, 4], max_tokens=5), read("cd", [2, 4], max_tokens=9)),
    "give both the same --text": (read("ab", [3, 4], seed=1), read("abc", [3, 4, 1], seed=2)),
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
def test_the_hint_says_what_to_do(hint: str) -> None:
    assert hint in str(told(*HINTS[hint]).hint)
