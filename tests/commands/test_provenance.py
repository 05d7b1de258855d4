"""What a report tells of how it was made."""

from dataclasses import replace

import numpy as np

from moetool import __version__
from moetool.commands.provenance import made_with
from tests.statistics.traces import random_trace


def make(**changes):
    trace = random_trace(0, 8, 2, (40, 20), layers=2)
    settings = {"dtype": "bfloat16", "device": "cpu", "engine": None, "quantize": ["8bit"], "max_length": 9}
    return replace(trace, versions={"torch": "2", "moetool": "0.0.0", "vllm": 3}, settings=settings, **changes)


def test_versions_and_what_auto_became():
    told = dict(made_with(make()))
    assert len(told.pop("corpus")) == 12
    assert list(told.items()) == [("moetool", __version__), ("torch", "2"), ("dtype", "bfloat16"), ("device", "cpu")]


def test_the_corpus_is_the_tokens_and_where_documents_end():
    trace = make()
    corpus = made_with(trace)["corpus"]
    assert made_with(make(layers=trace.layers[:1], tokens=trace.tokens.astype(np.int64)))["corpus"] == corpus
    other = trace.tokens.copy()
    other[-1] += 1
    assert made_with(make(tokens=other))["corpus"] != corpus
    first, second = trace.documents
    moved = (replace(first, tokens=first.tokens - 1), replace(second, start=second.start - 1, tokens=second.tokens + 1))
    assert made_with(make(documents=moved))["corpus"] != corpus


def test_a_dump_of_loads_has_no_tokens():
    trace = make()
    assert "corpus" not in made_with(replace(trace, settings={"load_only": True}))
