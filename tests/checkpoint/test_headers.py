"""Safetensors headers: the valid ones are read exactly, every lie is refused with the names of file and tensor."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moetool.checkpoint.headers import read_header, read_headers
from moetool.errors import MoetoolError
from tests.stored import make_header, mixtral_tensors, write_raw, write_safetensors

TENSORS = {"a.weight": ("BF16", [2, 3]), "b.scale": ("F32", []), "c.empty": ("F16", [0, 7]), "d": ("F4", [4])}


def test_reads_what_safetensors_writes(tmp_path):
    arrays = {
        "x": np.zeros((3, 5), np.float32),
        "y.z": np.zeros((2, 2, 2), np.int64),
        "w": np.zeros(7, np.uint8),
        "s": np.array(1, np.float16),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in read_header(tmp_path / "model.safetensors")}
    assert {name: tensor.shape for name, tensor in found.items()} == {name: a.shape for name, a in arrays.items()}
    assert {name: tensor.size_bytes for name, tensor in found.items()} == {name: a.nbytes for name, a in arrays.items()}
    assert {name: tensor.dtype for name, tensor in found.items()} == {"x": "F32", "y.z": "I64", "w": "U8", "s": "F16"}
    assert {tensor.file for tensor in found.values()} == {"model.safetensors"}


def test_sizes_of_scalars_empty_tensors_and_half_bytes(tmp_path):
    tensors = read_header(write_safetensors(tmp_path / "m.safetensors", TENSORS))
    assert [(tensor.name, tensor.size_bytes) for tensor in tensors] == [
        ("a.weight", 12), ("b.scale", 4), ("c.empty", 0), ("d", 2),
    ]  # fmt: skip


def test_order_of_the_header_is_free(tmp_path):
    header, size = make_header(TENSORS)
    shuffled = dict(reversed(header.items()))
    path = write_raw(tmp_path / "m.safetensors", json.dumps(shuffled).encode(), size)
    assert [tensor.name for tensor in read_header(path)] == ["d", "c.empty", "b.scale", "a.weight"]


def test_unknown_dtype_counts_by_its_offsets(tmp_path):
    header = {"q": {"dtype": "I4", "shape": [4, 4], "data_offsets": [0, 8]}}
    (tensor,) = read_header(write_raw(tmp_path / "m.safetensors", json.dumps(header).encode(), 8))
    assert (tensor.dtype, tensor.size_bytes) == ("I4", 8)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "offsets disagree with the shape": ({"t": entry(shape=[3])}, "does not fill exactly its 8 bytes"),
    "begin after end": ({"t": entry(offsets=[8, 0])}, r"data_offsets are \[8, 0\]"),
    "negative begin": ({"t": entry(offsets=[-8, 0])}, r"data_offsets are \[-8, 0\]"),
    "beyond the file": ({"t": entry(shape=[4], offsets=[0, 16])}, "ends? at byte 16 of 8"),
    "hole at the start": ({"t": entry(shape=[1], offsets=[4, 8])}, "leaves a hole"),
    "bytes left over": ({"t": entry(shape=[1], offsets=[0, 4])}, "4 bytes after the last tensor"),
    "overlap": ({"s": entry(), "t": entry(shape=[1], offsets=[4, 8])}, "'t': overlaps"),
    "same bytes twice": ({"s": entry(), "t": entry()}, "overlaps"),
    "negative extents": ({"t": entry(shape=[-1, -2])}, r"its shape is \[-1, -2\]"),
    "float extent": ({"t": entry(shape=[2.0])}, r"its shape is \[2.0\]"),
    "boolean extent": ({"t": entry(shape=[True, 2])}, r"its shape is \[True, 2\]"),
    "text extent": ({"t": entry(shape=["2"])}, "its shape is"),
    "nested shape": ({"t": entry(shape=[[2]])}, "its shape is"),
    "huge extents": ({"t": entry(shape=[2**62, 2**62])}, "does not fill"),
    "float offsets": ({"t": entry(offsets=[0.0, 8.0])}, "lacks dtype, shape or data_offsets"),
    "three offsets": ({"t": entry(offsets=[0, 4, 8])}, "lacks dtype"),
    "no dtype": ({"t": {"shape": [2], "data_offsets": [0, 8]}}, "lacks dtype"),
    "numeric dtype": ({"t": entry(dtype=32)}, "lacks dtype"),
    "no object": ({"t": [0, 8]}, "lacks dtype"),
    "null": ({"t": None}, "lacks dtype"),
    "metadata is a list": ({"__metadata__": [], "t": entry()}, "__metadata__"),
    "metadata is no text": ({"__metadata__": {"format": 1}, "t": entry()}, "__metadata__"),
    "an extent of 70 bits": ({"t": entry("U8", [2**70, 0], [0, 0])}, "its shape is"),
    "too many axes": ({"t": entry(shape=[2] + [1] * 64)}, "its shape is"),
    "more elements than bits": ({"t": entry("I4", [65])}, "does not fill"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path, lie):
    header, message = LIES[lie]
    path = write_raw(tmp_path / "lie.safetensors", json.dumps(header).encode(), 8)
    with pytest.raises(MoetoolError, match=message) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert "metadata" in lie or "file" in lie or "left over" in lie or "'t'" in caught.value.message
    assert caught.value.hint


T = '"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
BROKEN = {
    "empty": b"",
    "not JSON": b"{nonsense",
    "a list": b"[]",
    "white space first": b"  {}",
    "not UTF-8": b'{"\xff": 1}',
    "nested too deep": b'{"t": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number with 5000 digits": b'{"t": ' + b"9" * 5000 + b"}",
    "a tensor twice": f"{{{T}, {T}}}".encode(),
    "a tensor twice, once escaped": f"{{{T}, {T}}}".replace('"t"', '"\\u0074"', 1).encode(),
    "a key twice": f"{{{T}}}".replace('"dtype": "F32"', '"dtype": "U8", "dtype": "F32"').encode(),
    "metadata twice": f'{{"__metadata__": {{}}, {T}, "__metadata__": {{}}}}'.encode(),
    "a name that cannot be printed": f"{{{T}}}".replace('"t"', '"\\ud800"').encode(),
    "a name that cannot be printed, in bytes": f"{{{T}}}".encode().replace(b'"t"', b'"\xed\xa0\x80"'),
    "a type that cannot be printed": f"{{{T}}}".replace("F32", "\\ud800").encode(),
    "UTF-16": f"{{{T}}}".encode("utf-16-le"),
    "NaN in a key that nobody reads": f"{{{T}}}".replace("[2]", '[2], "x": NaN').encode(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers_are_refused(tmp_path, kind):
    path = write_raw(tmp_path / "broken.safetensors", BROKEN[kind], 8)
    with pytest.raises(MoetoolError, match=r"broken\.safetensors") as caught:
        read_header(path)
    caught.value.message.encode()
    if "twice" in kind:
        assert "occurs twice" in caught.value.message


def test_a_shape_that_would_take_days_to_multiply_is_refused_at_once(tmp_path):
    extent = int("9" * 4000)
    for dtype in ("F32", "I4"):
        header = json.dumps({"t": entry(dtype, [extent] * 500)}).encode()
        with pytest.raises(MoetoolError, match="'t': its shape is"):
            read_header(write_raw(tmp_path / "m.safetensors", header, 8))


@pytest.mark.parametrize("length", [3, 2**63, 2**64 - 1, 200_000_000])
def test_a_header_longer_than_the_file_is_never_read(tmp_path, length):
    path = write_raw(tmp_path / "m.safetensors", b"{}", 0, length)
    with pytest.raises(MoetoolError, match=f"header has {length} bytes, the file has 10"):
        read_header(path)


def test_a_header_above_the_limit_of_the_format_is_refused(tmp_path):
    path = write_raw(tmp_path / "m.safetensors", b"{}", 300_000_000, 200_000_000)
    with pytest.raises(MoetoolError, match="header has 200000000 bytes"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0"])
def test_a_file_without_a_header(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(MoetoolError, match="no safetensors file"):
        read_header(path)


def test_missing_file(tmp_path):
    with pytest.raises(MoetoolError, match="No such file"):
        read_header(tmp_path / "m.safetensors")


def test_a_tensor_in_two_files(tmp_path):
    for name in ("a", "b"):
        write_safetensors(tmp_path / name, {"t": ("F32", [2]), name: ("F32", [1])})
    with pytest.raises(MoetoolError, match="'t' is in a and in b"):
        read_headers(tmp_path, ["a", "b"])


VALID, VALID_BYTES = make_header({**TENSORS, **mixtral_tensors()})
VALID_TEXT = json.dumps(VALID).encode()
HEADER_FILES = st.lists(
    st.tuples(st.integers(0, len(VALID_TEXT) - 1), st.binary(max_size=3), st.integers(0, 4)), min_size=1, max_size=4
)


@given(HEADER_FILES, st.integers(-9, 9))
def test_mutated_bytes_give_tensors_or_a_clear_error(tmp_path_factory, edits, extra):
    raw = VALID_TEXT
    for position, inserted, removed in edits:
        raw = raw[:position] + inserted + raw[position + removed :]
    read_or_refuse(tmp_path_factory, raw, max(VALID_BYTES + extra, 0))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "X1"]) | JSON,
        "shape": st.lists(st.integers(-2, 9), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(-2, 40), st.integers(-2, 40)) | JSON,
    }
)


@given(st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4), st.integers(0, 40))
def test_any_json_gives_tensors_or_a_clear_error(tmp_path_factory, header, data_bytes):
    read_or_refuse(tmp_path_factory, json.dumps(header).encode(), data_bytes)


def read_or_refuse(tmp_path_factory, raw: bytes, data_bytes: int) -> None:
    path: Path = write_raw(tmp_path_factory.getbasetemp() / "fuzz.safetensors", raw, data_bytes)
    try:
        tensors = read_header(path)
    except MoetoolError as error:
        error.message.encode()
        return
    assert sum(tensor.size_bytes for tensor in tensors) == data_bytes
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    assert all(type(extent) is int and extent >= 0 for tensor in tensors for extent in tensor.shape)
