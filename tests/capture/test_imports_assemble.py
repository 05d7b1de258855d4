"""Recordings that are put together: what one says holds for all, and no two documents are taken for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moetool.capture.imports.assemble import Source, assemble
from moetool.capture.imports.recording import Known, RecordedDocument, RecordedLayer, Recording
from moetool.capture.store import write_trace
from moetool.capture.trace import check_trace, open_trace
from moetool.errors import MoetoolError

EVERY = np.zeros((3, 2), np.bool_)


def recorded(name="a", experts=None, id="a", domain="d", token_ids=None, highest=5, **parts):
    """A source of one document of three tokens, with two experts in a single layer."""
    layer = RecordedLayer(experts, np.array([[0, 2], [highest, 1], [3, 0]], np.uint16), **parts)
    return Source(domain, Path(f"{name}.csv"), Recording((RecordedDocument(id, 3),), {0: layer}, token_ids))


def put_together(*sources):
    """The trace, and what was noted."""
    notes: list[str] = []
    return assemble("llamacpp", sources, Known(), notes.append), notes


@pytest.mark.parametrize("order", [1, -1])
def test_sources_that_declare_other_experts_are_refused(order):
    sources = [recorded("a", 256), recorded("b", 300)][::order]
    with pytest.raises(MoetoolError) as caught:
        put_together(*sources)
    first, second = (("a.csv", 256), ("b.csv", 300))[::order]
    assert caught.value.message == (
        f"layer 0 has {first[1]} experts in {first[0]}, and in {second[0]} there are {second[1]}"
    )


@pytest.mark.parametrize("order", [1, -1])
def test_what_one_source_declares_holds_for_a_silent_one(order):
    trace, notes = put_together(*[recorded("a", 16), recorded("b", id="b")][::order])
    assert (trace.layers[0].experts, notes) == (16, [])
    with pytest.raises(MoetoolError) as caught:
        put_together(*[recorded("a", 7), recorded("b", highest=7)][::order])
    assert caught.value.message == "layer 0 has 7 experts in a.csv, and in b.csv expert 7 is chosen"


@pytest.mark.parametrize(
    ("part", "value", "what"), [("weight", EVERY.astype(np.float16), "weights"), ("dropped", EVERY, "dropped experts")]
)
def test_what_one_source_lacks_is_left_out_of_all_and_that_is_said(part, value, what):
    trace, notes = put_together(recorded("a", 8, **{part: value}), recorded("b", 8, id="b"))
    assert getattr(trace.layers[0], part) is None
    assert notes == [f"b.csv has no {what} in layer 0: those of the other recordings are left out"]
    trace, notes = put_together(recorded("a", 8, **{part: value}), recorded("b", 8, id="b", **{part: value}))
    assert getattr(trace.layers[0], part).tolist() == [[0, 0]] * 6
    assert notes == []


def test_documents_of_one_name_are_told_apart_within_a_domain_only():
    def found(*sources):
        return [(one.domain, one.id, one.group) for one in put_together(*sources)[0].documents]

    assert found(recorded(id="x", domain="d"), recorded("b", id="x", domain="e")) == [
        ("d", "x", "x"),
        ("e", "x", "x"),
    ]
    # The number that tells the first two apart is no name that a third one may have.
    names = found(recorded("p1/x", id="x"), recorded("p2/x", id="x"), recorded("1", id="1/x"))
    assert names == [("d", "1/x", "1/x"), ("d", "2/x", "2/x"), ("d", "3/1/x", "3/1/x")]


def test_the_digest_covers_all_that_was_recorded():
    ids = np.arange(3, dtype=np.int32)
    sources = [
        recorded(),
        recorded(token_ids=ids),
        recorded(token_ids=ids + 1),
        recorded(dropped=EVERY),
        recorded(dropped=~EVERY),
        recorded(weight=EVERY.astype(np.float16)),
    ]
    assert len({put_together(source)[0].settings["sha256"] for source in sources}) == len(sources)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"chosen": np.full((3, 2), 8, np.uint16)}}, "layer 0 chose expert 8 of 8"),
        ({"layers": {"experts_per_token": 9}}, "a.csv makes no trace"),
        ({"layers": {"rerouted": np.array([0, 3, 0], np.uint8)}}, "layer 0 rerouted 3 of 2 experts of a token"),
        ({"documents": {"tokens": -1}}, "start or tokens of document 'a'"),
        ({"documents": {"start": 1}}, "document 'a' starts at token 1, not 0"),
        ({"documents": {"prompt_tokens": 4}}, "prompt_tokens of document 'a'"),
    ],
)
def test_what_could_not_be_opened_is_not_to_be_written(change, message):
    trace, _ = put_together(recorded(experts=8))
    check_trace(trace, "a.csv")
    for part, fields in change.items():
        trace = replace(trace, **{part: tuple(replace(one, **fields) for one in getattr(trace, part))})
    with pytest.raises(MoetoolError, match=r"^a\.csv") as caught:
        check_trace(trace, "a.csv")
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("layer-000.chosen", np.zeros((3, 2), np.uint64), "layer 0: chosen experts are uint64"),
        ("layer-000.chosen", np.full((3, 2), -1), "layer 0: chosen experts are int64"),
        ("layer-000.chosen", np.full((3, 2), -1, np.int32), "layer 0 chose expert -1 of 8"),
        ("layer-000.weight", np.zeros((3, 2), np.longdouble), "layer-000.weight.npy holds float128, not numbers"),
        ("layer-000.scores", np.zeros((3, 4), np.complex64), "layer-000.scores.npy holds complex64, not numbers"),
        ("layer-000.rerouted", np.full(3, 3, np.uint8), "layer 0 rerouted 3 of 2 experts of a token"),
        ("special", np.full(3, 2), "special.npy holds int64, and not only 0 and 1"),
        ("special", np.zeros(3), "special.npy holds float64, and not only 0 and 1"),
    ],
)
def test_arrays_that_make_no_sense_are_not_opened(tmp_path, name, array, message):
    write_trace(put_together(recorded(experts=8))[0], tmp_path / "trace")
    np.save(tmp_path / "trace" / f"{name}.npy", array)
    with pytest.raises(MoetoolError) as caught:
        open_trace(tmp_path / "trace")
    assert message in caught.value.message


def test_special_tokens_as_ones_and_a_broken_header(tmp_path):
    write_trace(put_together(recorded(experts=8))[0], tmp_path / "trace")
    np.save(tmp_path / "trace" / "special.npy", np.array([0, 1, 0]))
    assert open_trace(tmp_path / "trace").special.tolist() == [False, True, False]
    path = tmp_path / "trace" / "tokens.npy"
    path.write_bytes(path.read_bytes().replace(b"(3,)", b"((3,"))
    with pytest.raises(MoetoolError, match=r"tokens\.npy cannot be read"):
        open_trace(tmp_path / "trace")


@pytest.mark.parametrize(("value", "refused"), [("1", True), ('"no"', True), ("null", True), ("false", False)])
def test_load_only_is_true_or_false(tmp_path, value, refused):
    write_trace(put_together(recorded(experts=8))[0], tmp_path / "trace")
    path = tmp_path / "trace" / "trace.json"
    path.write_text(path.read_text().replace('"format":', f'"load_only": {value}, "format":'))
    if refused:
        with pytest.raises(MoetoolError, match="load_only is neither true nor false"):
            open_trace(tmp_path / "trace")
    else:
        assert not open_trace(tmp_path / "trace").load_only
