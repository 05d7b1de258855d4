"""Arrays of vLLM: dense layers and padding are told from choices, or asked about; nothing is unpickled."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.capture.imports.columns import routed_rows
from moetool.commands.import_trace import describe_model
from tests.capture.recordings import Bomb, import_one, refused


def choices(tokens: int, layers: int, experts: int, per_token: int, seed: int = 0) -> np.ndarray:
    """``[T, L, K]`` different experts of each token."""
    random = np.random.default_rng(seed)
    return random.permuted(np.tile(np.arange(experts), (tokens, layers, 1)), axis=2)[:, :, :per_token].astype(np.int16)


def test_a_dense_layer_is_left_out_and_that_is_said(tmp_path):
    chosen = choices(5, 3, 8, 2)
    chosen[:, 0] = 0
    np.save(tmp_path / "run.npy", chosen)
    recording, notes = import_one("vllm", tmp_path / "run.npy", experts=8)
    assert list(recording.layers) == [1, 2]
    np.testing.assert_array_equal(recording.layers[2].chosen, chosen[:, 2])
    assert len(notes) == 1
    assert "no routing in layer 0, which is taken" in notes[0]


def test_documents_are_sorted_as_people_count_and_have_prompt_and_tokens(tmp_path):
    arrays = {name: choices(length, 2, 8, 2) for name, length in (("r10", 4), ("r9", 3))}
    extras = {"r9.token_ids": np.array([5, 6, 7, 8]), "r9.prompt_tokens": np.array(2)}
    np.savez(tmp_path / "run.npz", **arrays, **extras)
    recording, _ = import_one("vllm", tmp_path / "run.npz")
    found = [(document.id, document.tokens, document.prompt_tokens) for document in recording.documents]
    assert found == [("run/r9", 3, 2), ("run/r10", 4, None)]
    assert recording.token_ids is not None
    assert recording.token_ids.tolist() == [5, 6, 7, 0, 0, 0, 0]
    np.testing.assert_array_equal(recording.layers[0].chosen[3:], arrays["r10"][:, 0])


@pytest.mark.parametrize("filler", [0, -1])
def test_padding_at_the_ends_is_left_out_and_counted(tmp_path, filler):
    chosen = choices(6, 2, 8, 2)
    chosen[[0, 4, 5]] = filler
    np.savez(tmp_path / "run.npz", a=chosen, **{"a.prompt_tokens": np.array(3), "a.token_ids": np.arange(6)})
    recording, notes = import_one("vllm", tmp_path / "run.npz")
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(3, 2)]
    assert recording.token_ids is not None
    assert recording.token_ids.tolist() == [1, 2, 3]
    assert any("3 rows without any choice" in note for note in notes)


@given(st.integers(0, 3), st.integers(1, 5), st.integers(0, 3), st.sampled_from([0, -1]))
def test_padding_of_any_length(before, tokens, after, filler):
    chosen = np.full((before + tokens + after, 2, 2), filler)
    chosen[before : before + tokens] = choices(tokens, 2, 8, 2)
    assert routed_rows(chosen) == slice(before, before + tokens)


def test_one_expert_per_token_needs_the_model_where_a_column_is_zero(tmp_path):
    chosen = choices(5, 2, 4, 1)
    chosen[:, 0] = 0
    np.save(tmp_path / "run.npy", chosen)
    assert "layer 0 holds 0 only: a dense layer, or a router" in refused("vllm", tmp_path / "run.npy")
    np.save(tmp_path / "run.npy", chosen[:, 1:])
    assert list(import_one("vllm", tmp_path / "run.npy")[0].layers) == [0]


def test_the_model_tells_layers_and_experts(tmp_path):
    known = describe_model("demo", None, None, None, None)
    assert known.model is not None
    facts = known.model.facts
    experts, per_token = facts.moe_layers[0].experts, facts.moe_layers[0].experts_per_token
    assert per_token is not None
    chosen = choices(5, facts.layers, experts, per_token)
    np.save(tmp_path / "run.npy", chosen)
    recording, _ = import_one("vllm", tmp_path / "run.npy", model=known.model)
    assert list(recording.layers) == [layer.layer for layer in facts.moe_layers]
    assert {layer.experts for layer in recording.layers.values()} == {experts}
    assert "2 by --experts" in refused("vllm", tmp_path / "run.npy", model=known.model, experts=2)
    np.save(tmp_path / "run.npy", np.concatenate([chosen, chosen], axis=1))
    assert f"has {2 * facts.layers} layers, and demo has" in refused("vllm", tmp_path / "run.npy", model=known.model)
    np.save(tmp_path / "run.npy", choices(5, facts.layers, experts, per_token + 1))
    assert "experts per token in layer" in refused("vllm", tmp_path / "run.npy", model=known.model)


def spoil(where, value):
    array = choices(5, 2, 8, 2)
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": spoil((2, 1, 0), 8)}, "document 1 (run/a), token 3, layer 1: expert ids must be 0 to 7"),
        ({"a": spoil((2, 1, 0), -1)}, "token 3, layer 1: expert ids"),
        (
            {"a": choices(5, 2, 8, 2), "b": spoil((2, 1), 3)},
            "document 2 (run/b), token 3, layer 1: an expert is chosen",
        ),
        ({"a": spoil(2, 0)}, "token 3, layer 0: an expert is chosen twice"),
        ({"a": np.ones((5, 2))}, "array a is float64 [5, 2], not whole numbers"),
        ({"a": np.ones((5, 2, 2), np.uint64)}, "array a is uint64 [5, 2, 2]"),
        ({"a": choices(5, 2, 8, 2), "b": choices(5, 3, 8, 2)}, "document run/a has 2 layers with 2 experts per token"),
        ({"a": choices(5, 2, 8, 2), "a.token_ids": np.arange(9)}, "array a has 5 tokens, and token_ids int64 [9]"),
        ({"a": choices(5, 2, 8, 2), "a.prompt_tokens": np.array(9)}, "array a has 5 tokens, and prompt_tokens 9"),
        ({"a": choices(2, 2, 8, 2), "a.token_ids": np.array([5, -5])}, "array a.token_ids: token 2 has id -5"),
        ({"a": choices(2, 2, 8, 2), "a.token_ids": np.array([2**31, 5])}, "token 1 has id 2147483648"),
        ({"b.token_ids": np.arange(9)}, "has no array b"),
        ({}, "has no array of routed experts"),
    ],
)
def test_malformed_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "run.npz", **arrays)
    assert message in refused("vllm", tmp_path / "run.npz", experts=8)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pickle"])
def test_no_pickle_runs(tmp_path, suffix):
    path = tmp_path / f"run.{suffix}"
    bomb = np.array([Bomb(tmp_path / "ran")], dtype=object)
    if suffix == "npy":
        np.save(path, bomb)
    elif suffix == "npz":
        np.savez(path, a=bomb)
    else:
        path.write_bytes(pickle.dumps(bomb))
    assert "cannot be read" in refused("vllm", path)
    assert not (tmp_path / "ran").exists()
    with path.open("rb") as file:  # it would have
        np.load(file, allow_pickle=True)["a"] if suffix == "npz" else np.load(file, allow_pickle=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_truncated_files(tmp_path, suffix):
    path = tmp_path / f"run.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, choices(50, 2, 8, 2))
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read" in refused("vllm", path)


def saved(chosen) -> bytes:
    """The bytes of a .npy."""
    stream = io.BytesIO()
    np.save(stream, chosen)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ("((5, 2, 2)", b""),  # a bracket that is never closed
        ("(99999999999999999999999, 2, 2)", b""),
        ("(4611686018427387904, 4, 4)", b""),
        ("(True, 2, 2)", bytes(16)),
        ("(-1, 2, 2)", bytes(16)),
    ],
)
def test_broken_headers_are_refused(tmp_path, shape, data):
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    magic = b"\x93NUMPY\x01\x00"
    (tmp_path / "run.npy").write_bytes(magic + len(header).to_bytes(2, "little") + header.encode() + data)
    assert str(tmp_path / "run.npy") in refused("vllm", tmp_path / "run.npy")


def flag(data: bytes, local: int, central: int, value: int) -> bytes:
    """A zip file of one entry in which both of its headers say something else."""
    changed = bytearray(data)
    changed[local] = value
    changed[data.find(b"PK\x01\x02") + central] = value
    return bytes(changed)


@pytest.mark.parametrize("damage", ["text", "encrypted", "compression", "lzma"])
def test_archives_that_numpy_does_not_read_are_refused(tmp_path, damage):
    path = tmp_path / "run.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA if damage == "lzma" else zipfile.ZIP_STORED) as archive:
        archive.writestr("a.npy", saved(choices(5, 2, 8, 2)))
        if damage == "text":
            archive.writestr("readme.txt", "hello")
    data = path.read_bytes()
    if damage == "encrypted":
        data = flag(data, 6, 8, 1)
    elif damage == "compression":
        data = flag(data, 8, 10, 77)
    elif damage == "lzma":
        data = data[:60] + b"\xff" * 10 + data[70:]
    path.write_bytes(data)
    message = refused("vllm", path)
    assert str(path) in message
    assert ("readme.txt is no array" if damage == "text" else "cannot be read: ") in message


def test_more_experts_than_a_trace_can_hold_are_refused(tmp_path):
    np.save(tmp_path / "run.npy", choices(5, 2, 8, 2))
    assert "layer 0: there cannot be 65,537 experts" in refused("vllm", tmp_path / "run.npy", experts=65537)
    assert import_one("vllm", tmp_path / "run.npy", experts=65536)[0].layers[0].experts == 65536
