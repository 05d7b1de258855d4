"""ESFT text: what is written comes back, and every malformed line is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moetool.capture.imports import esft
from moetool.capture.imports.assemble import Source, assemble
from moetool.capture.imports.recording import Known, possible_experts_per_token
from tests.capture.recordings import import_one, refused

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "routing" / "esft_law_intent.npz"


def write_esft(folder: Path, chosen: np.ndarray, weights: np.ndarray, lengths: list[int], first: int = 1) -> Path:
    """``[T, L, K]`` ids and weights as the scripts write them: a file per layer, a line per document."""
    folder.mkdir(parents=True)
    ends = np.cumsum(lengths)[:-1]
    for layer in range(chosen.shape[1]):
        lines = [
            "\t".join(map(str, ids.ravel())) + "\t\t" + "\t".join(f"{float(weight):.4f}" for weight in some.ravel())
            for ids, some in zip(np.split(chosen[:, layer], ends), np.split(weights[:, layer], ends), strict=True)
        ]
        (folder / f"expert_weights_{first + layer}.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_two_documents_by_hand(tmp_path):
    (tmp_path / "expert_weights_3.txt").write_text("5\t2\t0\t1\t\t0.5\t0.25\t0.125\t1\n7\t5\t\t0.5\t0.5\n")
    recording, notes = import_one("esft", tmp_path, experts_per_token=2, experts=8)
    assert [document.tokens for document in recording.documents] == [2, 1]
    assert list(recording.layers) == [3]
    layer = recording.layers[3]
    assert layer.chosen.tolist() == [[5, 2], [0, 1], [7, 5]]
    assert layer.weight is not None
    assert layer.weight.tolist() == [[0.5, 0.25], [0.125, 1], [0.5, 0.5]]
    assert (layer.experts, notes) == (8, [])


def test_files_are_layers_in_the_order_of_their_numbers(tmp_path):
    for number in (2, 10):
        (tmp_path / f"expert_weights_{number}.txt").write_text(f"{number}\t1\t\t0.5\t0.5\n")
    (tmp_path / "summary.json").write_text("{}")
    recording, _ = import_one("esft", tmp_path, experts_per_token=2)
    assert {number: layer.chosen[0, 0] for number, layer in recording.layers.items()} == {2: 2, 10: 10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t2\t\t0.5\t0.5\n1\tx\t\t0.5\t0.5\n", "expert_weights_1.txt: line 2: ids or weights are missing"),
        ("1\t2\t\t0.5\n", "line 1: 2 ids and 1 weights"),
        ("1\t2\t0.5\t0.5\n", "line 1: ids or weights are missing"),
        ("1\t2.5\t\t0.5\t0.5\n", "line 1: ids or weights are missing"),
        ("1\t2\t\t0.5\t\t0.5\n", "line 1: ids or weights are missing"),
        ("1\t2\t\t0.5\tnan\n", "line 1: a weight is not finite"),
        ("1\t2\t\t0.5\t1e9\n", "line 1: a weight is not finite, or too large"),
        ("1\t-2\t\t0.5\t0.5\n", "line 1: expert -2 cannot be"),
        ("1\t99999999999999999999\t\t0.5\t0.5\n", "line 1: "),
        ("1\t2\t3\t\t0.5\t0.5\t0.5\n", "line 1: 3 ids are no whole number of tokens with 2 experts"),
        ("1\t2\t\t0.5\t0.5\n\n", "line 2: ids or weights are missing"),
        ("1\t2\t3\t8\t\t1\t1\t1\t1\n", "document 1 ("),
        ("1\t2\t8\t3\t\t1\t1\t1\t1\n", "token 2, layer 1: expert ids must be 0 to 7"),
        ("1\t2\t3\t3\t\t1\t1\t1\t1\n", "token 2, layer 1: an expert is chosen twice"),
        ("\xe9\t2\t\t1\t1\n", "line 1: ids or weights are missing"),
        ("", "is empty"),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, message):
    (tmp_path / "expert_weights_1.txt").write_text(text, encoding="utf-8")
    assert message in refused("esft", tmp_path, experts_per_token=2, experts=8)


def test_layers_must_have_the_same_documents(tmp_path):
    (tmp_path / "expert_weights_1.txt").write_text("1\t2\t\t1\t1\n")
    (tmp_path / "expert_weights_2.txt").write_text("1\t2\t3\t4\t\t1\t1\t1\t1\n")
    assert "expert_weights_2.txt: line 1 has 2 tokens, that of" in refused("esft", tmp_path, experts_per_token=2)
    (tmp_path / "expert_weights_2.txt").write_text("1\t2\t\t1\t1\n1\t2\t\t1\t1\n")
    assert "expert_weights_2.txt has 2 lines" in refused("esft", tmp_path, experts_per_token=2)


def test_a_folder_without_such_files(tmp_path):
    assert "no folder with files expert_weights_N.txt" in refused("esft", tmp_path)
    assert "no folder with files expert_weights_N.txt" in refused("esft", tmp_path / "missing")


def test_experts_per_token_are_asked_for(tmp_path):
    (tmp_path / "expert_weights_1.txt").write_text("1\t2\t3\t1\t\t1\t1\t1\t1\n")
    assert "is too short to tell: 1, 2 would fit" in refused("esft", tmp_path)


def test_experts_per_token_are_deduced_from_enough_tokens(tmp_path):
    """1,200 tokens with 4 of 8 experts: 8 would need pairs of tokens that have no expert in common."""
    random = np.random.default_rng(0)
    ids = random.random((1200, 8)).argsort(axis=1)[:, :4]
    lines = ["\t".join(map(str, part.ravel())) + "\t\t" + "\t".join(["0.5"] * part.size) for part in np.split(ids, 3)]
    for number in (1, 2):
        (tmp_path / f"expert_weights_{number}.txt").write_text("\n".join(lines) + "\n")
    notes = []
    recording = esft.read(tmp_path, Known(None, None, None, None), notes.append)
    np.testing.assert_array_equal(recording.layers[1].chosen, ids)
    assert len(notes) == 1
    assert "4 is the most that fits" in notes[0]
    assert possible_experts_per_token(np.array([1, 1]), [2]) == [1]
    assert possible_experts_per_token(np.arange(12), [6, 6]) == [1, 2, 3, 6]


def test_unknown_experts_are_the_highest_id_of_any_layer_and_that_is_said(tmp_path):
    (tmp_path / "expert_weights_1.txt").write_text("1\t2\t\t1\t1\n")
    (tmp_path / "expert_weights_2.txt").write_text("9\t2\t\t1\t1\n")
    recording, notes = import_one("esft", tmp_path, experts_per_token=2)
    trace = assemble("esft", [Source("d", tmp_path, recording)], Known(), notes.append)
    assert [layer.experts for layer in trace.layers] == [10, 10]
    assert "10, by the highest id" in notes[-1]


def test_lines_of_one_token_each_are_remarked(tmp_path):
    for text, remarked in (("1\t2\t\t1\t1\n3\t1\t\t1\t1\n", True), ("1\t2\t3\t1\t\t1\t1\t1\t1\n", False)):
        (tmp_path / "expert_weights_1.txt").write_text(text)
        _, notes = import_one("esft", tmp_path, experts_per_token=2)
        assert any("ids of a whole document belong on one line" in note for note in notes) is remarked


def test_two_files_of_one_layer_are_refused(tmp_path):
    for name in ("0", "00"):
        (tmp_path / f"expert_weights_{name}.txt").write_text("1\t2\t\t1\t1\n")
    message = refused("esft", tmp_path, experts_per_token=2)
    assert "expert_weights_0.txt" in message
    assert "expert_weights_00.txt are of one layer" in message


def test_a_byte_order_mark_is_no_number(tmp_path):
    (tmp_path / "expert_weights_1.txt").write_text("1\t2\t\t1\t1\r\n", encoding="utf-8-sig")
    assert import_one("esft", tmp_path, experts_per_token=2)[0].layers[1].chosen.tolist() == [[1, 2]]


def test_published_routing_comes_back(tmp_path):
    if not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED} is not here: the published routing is not part of the project")
    data = np.load(PUBLISHED)
    kept = slice(0, 6)  # of 26 layers, which are all alike to the reader
    chosen, weights = data["intent_expert_ids"][:, kept], data["intent_weights"][:, kept]
    lengths = data["intent_doc_lengths"].tolist()
    recording, _ = import_one("esft", write_esft(tmp_path / "intent", chosen, weights, lengths), experts_per_token=6)
    assert [document.tokens for document in recording.documents] == lengths
    for number, layer in recording.layers.items():
        np.testing.assert_array_equal(layer.chosen, chosen[:, number - 1])
        np.testing.assert_array_equal(layer.weight, weights[:, number - 1])
