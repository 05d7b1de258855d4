"""Damaged and hostile GGUF files: every one is refused by name, with exit code 2, and none is read for ever."""

import os
import struct
import sys
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool import cli
from moetool.checkpoint.dtypes import bits_per_element
from moetool.checkpoint.gguf import read_gguf
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
from tests.stored_gguf import mixtral_gguf, write_gguf, write_mixtral

TENSORS = mixtral_gguf()
NAN = float("nan")


def edit(path, position, raw):
    with path.open("r+b") as stream:
        stream.seek(position)
        stream.write(raw)


def find(path, text):
    return path.read_bytes().index(text)


def lengthen(path, key, count):
    """Let the list of a key claim ``count`` entries."""
    edit(path, find(path, key) + len(key) + 8, struct.pack("<Q", count))


def set_extents(path, name, *extents):
    edit(path, find(path, name) + len(name) + 4, struct.pack(f"<{len(extents)}Q", *extents))


def set_offset(path, name, offset):
    """Of a tensor with two axes."""
    edit(path, find(path, name) + len(name) + 4 + 16 + 4, struct.pack("<Q", offset))


Q = b"blk.0.attn_q.weight"
DAMAGES = {
    "empty": (lambda p: p.write_bytes(b""), "does not begin with GGUF"),
    "safetensors": (lambda p: p.write_bytes(b"\x02\0\0\0\0\0\0\0{}"), "does not begin with GGUF"),
    "only magic": (lambda p: p.write_bytes(b"GGUF\x03\0\0\0"), "it has 8 bytes only"),
    "prefix only": (lambda p: os.truncate(p, 24), r"says that it has 2\d tensors, in 24 bytes"),
    "cut in the keys": (lambda p: os.truncate(p, find(p, b"tokenizer.ggml.tok") + 30), "no valid GGUF file"),
    "cut in a name": (lambda p: os.truncate(p, find(p, Q) + 4), "no valid GGUF file"),
    "cut in the data": (lambda p: os.truncate(p, p.stat().st_size - 64), "no valid GGUF file"),
    "version 1": (lambda p: edit(p, 4, b"\1"), "version 1 of the format"),
    "version 9": (lambda p: edit(p, 4, b"\x09"), "version 9 of the format"),
    "big-endian": (lambda p: edit(p, 4, b"\0\0\0\3"), "is big-endian"),
    "endless tensors": (lambda p: edit(p, 8, b"\xff" * 8), "it has 18446744073709551615 tensors"),
    "too many keys": (lambda p: edit(p, 16, struct.pack("<Q", 99_999)), "it has 99999 keys"),
    "one tensor too many": (lambda p: edit(p, 8, struct.pack("<Q", len(TENSORS) + 1)), "no valid GGUF file"),
    "one key too many": (lambda p: edit(p, 16, b"\x0e"), "no valid GGUF file"),
    "endless text": (lambda p: edit(p, find(p, b"general.architecture") - 8, b"\xff" * 8), "no valid GGUF file"),
    "endless name": (lambda p: edit(p, find(p, Q) - 8, struct.pack("<Q", 2**62)), "no valid GGUF file"),
    "endless texts": (lambda p: lengthen(p, b"tokenizer.ggml.tokens", 2**62), "a list of texts ends beyond"),
    "endless numbers": (lambda p: lengthen(p, b"tokenizer.ggml.scores", 2**60), "no valid GGUF file"),
    "unknown kind of key": (lambda p: edit(p, find(p, b"llama.block_count") + 17, b"\x63"), " 99 is not a valid GGUF"),
    "unknown kind of list": (lambda p: edit(p, find(p, b"tokenizer.ggml.scores") + 25, b"\x63"), "99 is not a valid"),
    "list of lists": (lambda p: edit(p, find(p, b"tokenizer.ggml.scores") + 25, b"\x09"), "a list of lists"),
    "same key twice": (lambda p: edit(p, find(p, b"tokenizer.ggml.scores"), b"tokenizer.ggml.tokens"), "Duplicate"),
    "key is no text": (lambda p: edit(p, find(p, b"llama.expert_count"), b"\xff\xfe"), "no valid GGUF file"),
    "unknown type": (lambda p: edit(p, find(p, Q) + len(Q) + 20, b"\x63"), "has the type 99, which the"),
    "removed type": (lambda p: edit(p, find(p, Q) + len(Q) + 20, b"\x04"), "has the type 4, which the"),
    "row of half a block": (lambda p: edit(p, find(p, Q) + len(Q) + 20, b"\x08"), "not a multiple of Q8_0 block"),
    "a name twice": (lambda p: edit(p, find(p, Q), b"blk.1.attn_q.weight"), "duplicated tensor .* blk.1.attn_q.weight"),
    "name is no text": (lambda p: edit(p, find(p, Q), b"\xff"), "no valid GGUF file"),
    "endless axes": (lambda p: edit(p, find(p, Q) + len(Q), b"\xff" * 4), "no valid GGUF file"),
    "product overflows to 0": (lambda p: set_extents(p, Q, 2**32, 2**32), "no valid GGUF file"),
    "product overflows to 8": (lambda p: set_extents(p, Q, 2**61 + 1, 8), "no valid GGUF file"),
    "extent of 2**64": (lambda p: set_extents(p, Q, 2**64 - 1, 1), "no valid GGUF file"),
    "tensor beyond the end": (lambda p: set_extents(p, Q, 8, 800), "no valid GGUF file"),
    "offset beyond the end": (lambda p: set_offset(p, Q, 2**40), "no valid GGUF file"),
    "offset that overflows": (lambda p: set_offset(p, Q, 2**64 - 32), "no valid GGUF file|overflow"),
    "shared bytes": (lambda p: set_offset(p, Q, 0), "overlaps the one before it"),
    "alignment 0": (lambda p: write_mixtral(p, general__alignment=0), "alignment"),
    "alignment 3": (lambda p: write_mixtral(p, general__alignment=3), "alignment"),
    "alignment is a text": (lambda p: write_mixtral(p, general__alignment="32"), "alignment"),
    "no tensors": (lambda p: write_mixtral(p, {}), "holds no tensors"),
    "no architecture": (lambda p: write_gguf(p, None, {}, TENSORS), "general.architecture is 'None'"),
    "architecture is a number": (lambda p: write_gguf(p, None, {}, TENSORS, general__architecture=7), "is '7', not"),
    "architecture is NaN": (lambda p: write_gguf(p, None, {}, TENSORS, general__architecture=NAN), "is 'nan', not"),
    "architecture is a list": (lambda p: write_gguf(p, None, {}, TENSORS, general__architecture=["a"]), "'None', not"),
    "architecture cannot be shown": (lambda p: write_gguf(p, "\x1b[2J", {}, TENSORS), "not the name"),
    "architecture of 10,000 letters": (lambda p: write_gguf(p, "x" * 10_000, {}, TENSORS), "not the name"),
    "blocks are NaN": (lambda p: write_gguf(p, "llama", {"block_count": NAN}, TENSORS), "block_count is nan"),
    "blocks are a text": (lambda p: write_gguf(p, "llama", {"block_count": "2"}, TENSORS), "which is no count"),
    "blocks are true": (lambda p: write_gguf(p, "llama", {"block_count": True}, TENSORS), "block_count is True"),
    "endless blocks": (lambda p: write_gguf(p, "llama", {"block_count": 2**31}, TENSORS), "has 2147483648 blocks"),
    "only predicting blocks": (
        lambda p: write_gguf(p, "llama", {"block_count": 2, "nextn_predict_layers": 3}, TENSORS), "3 of them for"
    ),
    "negative heads": (
        lambda p: write_gguf(p, "llama", {"attention.head_count_kv": [1, -1]}, TENSORS), r"is \[1, -1\], which is no"
    ),
    "an adapter": (lambda p: write_mixtral(p, general__type="adapter"), "is no model, but 'adapter'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage, monkeypatch, capsys):
    path = tmp_path / "damaged.gguf"
    write_mixtral(path, tokenizer__ggml__tokens=["a", "b"], tokenizer__ggml__scores=[0.5, 0.25])
    spoil, message = DAMAGES[damage]
    spoil(path)
    with pytest.raises(MoetoolError, match=message) as caught:
        locate(str(path))
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert caught.value.message.isprintable()
    monkeypatch.setattr(sys, "argv", ["moetool", "memory", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert (printed.out, "Traceback" in printed.err) == ("", False)


def test_a_hole_of_a_terabyte_is_not_read(tmp_path):
    """All zeros: empty keys, or empty names; the counts are as high as they may be."""
    path = tmp_path / "m.gguf"
    for counts in ((20_000, 0), (0, 20_000), (20_000, 20_000)):
        path.write_bytes(b"GGUF\x03\0\0\0" + struct.pack("<QQ", *counts))
        os.truncate(path, 2**40)
        with pytest.raises(MoetoolError, match="no valid GGUF file"):
            locate(str(path))


def test_a_vocabulary_in_a_hole_is_not_walked_through(tmp_path):
    path = write_mixtral(tmp_path / "m.gguf", tokenizer__ggml__tokens=["a"])
    lengthen(path, b"tokenizer.ggml.tokens", 2**36)
    begin = find(path, b"tokenizer.ggml.tokens") + 21 + 16
    os.truncate(path, begin)
    os.truncate(path, 2**40)
    edit(path, begin, struct.pack("<Q", 99_990_000))
    with pytest.raises(MoetoolError, match="ends beyond byte 100000000"):
        locate(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("by_folder", [True, False])
def test_pipes_are_not_waited_for(tmp_path, by_folder):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(MoetoolError, match=r"m\.gguf cannot be read: it is no regular file"):
        locate(str(tmp_path if by_folder else tmp_path / "m.gguf"))


def test_no_tensor_data_is_read(tmp_path):
    """A tensor of 576 GiB, all of it a hole: what was read would be in memory, or take a while."""
    path = write_mixtral(tmp_path / "m.gguf", {**TENSORS, "big": ("Q4_K", [2**20, 2**20])})
    assert path.stat().st_size > 2**39
    assert read_gguf(path, "m").tensors[-1].size_bytes == 2**40 // 256 * 144


# Mutations -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    path = tmp_path_factory.mktemp("valid") / "m.gguf"
    return write_mixtral(path, tokenizer__ggml__tokens=["a", "bc"], general__alignment=32).read_bytes()


EDITS = st.lists(
    st.tuples(
        st.integers(0, 3000),
        st.binary(max_size=4) | st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\0\0\0\0\x80", b"\x09\0\0\0"]),
        st.sampled_from(["replace", "insert", "remove", "cut"]),
    ),
    min_size=1,
    max_size=3,
)


@given(EDITS)
def test_mutated_files_give_a_checkpoint_or_a_clear_error(tmp_path_factory, valid, edits):
    content = valid
    for position, piece, how in edits:
        position %= len(content) or 1
        skipped = {"replace": len(piece), "insert": 0, "remove": len(piece) + 1, "cut": len(content)}[how]
        content = content[:position] + (piece if how in ("replace", "insert") else b"") + content[position + skipped :]
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(content)
    try:
        checkpoint = read_gguf(path, "m")
    except MoetoolError as error:
        error.message.encode()
        return
    assert sum(tensor.size_bytes for tensor in checkpoint.tensors) <= len(content)
    assert len({tensor.name for tensor in checkpoint.tensors}) == len(checkpoint.tensors)
    for tensor in checkpoint.tensors:
        bits = bits_per_element(tensor.dtype)
        assert bits is not None
        assert prod(tensor.shape) * bits == tensor.size_bytes * 8
