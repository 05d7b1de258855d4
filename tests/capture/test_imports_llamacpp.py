"""CSV of llama.cpp: batches are told apart by the rows alone, and what the tool does not record is left out aloud."""

from __future__ import annotations

import numpy as np
import pytest

from tests.capture.recordings import import_one, refused
from tests.capture.test_imports_vllm import choices


def moe_trace(chosen, batches, *, last_layer_short=True, first_layer=1):
    """Rows of ``[T, L, K]`` choices; the last layer of a prompt's batch has the last token only, as in llama.cpp."""
    rows, start = [], 0
    for tokens in batches:
        for layer in range(chosen.shape[1]):
            short = last_layer_short and layer == chosen.shape[1] - 1
            some = chosen[start + tokens - 1 if short else start : start + tokens, layer]
            rows += [f"{layer + first_layer},{expert}" for expert in some.ravel()]
        start += tokens
    return rows


def write(path, rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_prompt_and_decoded_tokens(tmp_path):
    chosen = choices(9, 4, 8, 2)
    path = write(tmp_path / "a.csv", moe_trace(chosen, [4, 3, 1, 1]))
    recording, notes = import_one("llamacpp", path, experts=8)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(9, 7)]
    assert list(recording.layers) == [1, 2, 3]
    for number, layer in recording.layers.items():
        np.testing.assert_array_equal(layer.chosen, chosen[:, number - 1])
    assert len(notes) == 1
    assert "layer 4 is left out" in notes[0]


def test_files_one_after_another_are_documents(tmp_path):
    chosen = choices(12, 3, 8, 2)
    path = write(tmp_path / "a.csv", moe_trace(chosen, [5, 1, 1, 4, 1], last_layer_short=False))
    recording, notes = import_one("llamacpp", path)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(7, 5), (5, 4)]
    np.testing.assert_array_equal(recording.layers[3].chosen, chosen[:, 2])
    assert notes == []


def test_experts_per_token_follow_from_single_tokens_only(tmp_path):
    chosen = choices(6, 2, 12, 2)
    path = write(tmp_path / "a.csv", moe_trace(chosen, [6], last_layer_short=False))
    assert "does not say how many experts a token has" in refused("llamacpp", path)
    assert import_one("llamacpp", path, experts_per_token=2)[0].documents[0].tokens == 6
    path = write(tmp_path / "b.csv", moe_trace(chosen, [5, 1], last_layer_short=False))
    assert import_one("llamacpp", path)[0].layers[1].chosen.shape == (6, 2)


def test_whole_rankings_in_place_of_choices_are_left_out(tmp_path):
    random = np.random.default_rng(0)
    rankings = random.permuted(np.tile(np.arange(16), (6, 3, 1)), axis=2)
    rows = []
    for layer in range(3):  # six tokens with two experts, read as if the ids of a batch were contiguous
        rows += [f"{layer},{expert}" for expert in rankings[:, layer].ravel()[:12]]
    decoded = choices(4, 3, 16, 2)
    rows += moe_trace(decoded, [1, 1, 1, 1], first_layer=0)
    recording, notes = import_one("llamacpp", write(tmp_path / "a.csv", rows), experts=16)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(4, 0)]
    np.testing.assert_array_equal(recording.layers[2].chosen, decoded[:, 2])
    assert len(notes) == 1
    assert "whole rankings" in notes[0]
    path = write(tmp_path / "b.csv", rows[:36])
    assert "holds rankings of prompts only" in refused("llamacpp", path, experts=16, experts_per_token=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,1", "0,x"], "could not convert string 'x'"),
        (["0,1", "0,1,2"], "number of columns changed"),
        (["0,1,2"], "has 3 columns"),
        (["0,1", "0,-1"], "row 2 is negative"),
        (["0,1", "1,1", "1,2", "2,0", "0,1", "2,1"], "row 6: layer 2 is out of turn"),
        (["0,1", "1,1", "0,1"], "row 3: layer 0 is the last of the file"),
        (["0,1", "0,2", "1,1", "1,2", "1,3"], "rows 3 to 5, layer 1: not as many tokens with 2 experts"),
        (["0,1", "0,2", "1,1", "1,8"], "token 1, layer 1: expert ids must be 0 to 7"),
        (["0,1", "0,2", "1,1", "1,1"], "token 1, layer 1: an expert is chosen twice"),
        ([], "is empty"),
    ],
)
def test_malformed_rows_are_named(tmp_path, rows, message):
    path = write(tmp_path / "a.csv", rows)
    assert message in refused("llamacpp", path, experts_per_token=2, experts=8)


HEADER = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
PREAMBLE = ["# route_trace v1", "# model=m.gguf arch=qwen3moe n_layer=3 n_expert=8 n_expert_used=2"]


def route_trace(chosen, turns, *, weight="0.5", extra=""):
    """Rows of ``(prompt, decoded)`` turns; the last layer has the last token of a prompt only."""
    rows, start = [], 0
    for turn, (prompt, decoded) in enumerate(turns):
        for step in range(prompt + decoded):
            for layer in range(chosen.shape[1]):
                if layer < chosen.shape[1] - 1 or step >= prompt - 1:
                    rows += [
                        f"{turn},{int(step >= prompt)},{10 * turn + step},{layer},{slot},{expert},{weight},1,0{extra}"
                        for slot, expert in enumerate(chosen[start + step, layer])
                    ]
        start += prompt + decoded
    return rows


def test_a_route_trace_has_a_document_per_turn(tmp_path):
    chosen = choices(9, 3, 8, 2)
    rows = route_trace(chosen, [(4, 2), (1, 2)])
    order = np.random.default_rng(1).permutation(len(rows))
    path = write(tmp_path / "a.csv", [*PREAMBLE, HEADER, *(rows[index] for index in order)])
    recording, notes = import_one("llamacpp", path)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(6, 4), (3, 1)]
    assert list(recording.layers) == [0, 1]
    assert recording.layers[0].experts == 8
    np.testing.assert_array_equal(recording.layers[1].chosen, chosen[:, 1])
    assert recording.layers[1].weight is not None
    assert (recording.layers[1].weight == 0.5).all()
    assert len(notes) == 1
    assert "layer 2 is left out" in notes[0]


def test_unknown_weights_and_dropped_experts(tmp_path):
    rows = route_trace(choices(3, 1, 8, 2), [(1, 2)], weight="nan", extra=",0")
    rows[1] = rows[1][:-1] + "1"
    path = write(tmp_path / "a.csv", [*PREAMBLE, HEADER + ",dropped", *rows])
    layer = import_one("llamacpp", path)[0].layers[0]
    assert layer.weight is None
    assert layer.dropped is not None
    assert layer.dropped.tolist() == [[False, True], [False, False], [False, False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "layer 2: a token lacks one of slots 0 to 1"),
        (lambda rows: [*rows[:1], rows[0], *rows[2:]], "layer 0: a token lacks one of slots 0 to 1, or has it twice"),
        (lambda rows: [rows[0].replace("0.5", "nan"), *rows[1:]], "token 1, layer 0: a weight is not finite"),
        (lambda rows: ["0,0,-1,0,0,1,0.5,1,0", *rows[1:]], "row 1 after the header: step is -1"),
        (lambda rows: ["0,0,0,0,0,1.5,0.5,1,0", *rows[1:]], "row 1 after the header: expert is 1.5"),
        (lambda rows: ["0,0,0,0,0,9,0.5,1,0", *rows[1:]], "expert ids must be 0 to 7"),
        (lambda rows: [row.rpartition(",")[0] for row in rows], "has 8 columns, not 9"),
        (lambda rows: [*rows, "x"], "after the header"),
        (lambda rows: [row for row in rows if not row.startswith("0,1,1,1")], "layer 1 has other tokens"),
        (lambda rows: [], "after the header"),
    ],
)
def test_malformed_route_traces_are_named(tmp_path, change, message):
    rows = route_trace(choices(4, 3, 8, 2), [(1, 3)])
    path = write(tmp_path / "a.csv", [*PREAMBLE, HEADER, *change(rows)])
    assert message in refused("llamacpp", path)


def test_a_route_trace_without_its_preamble(tmp_path):
    path = write(tmp_path / "a.csv", [HEADER, *route_trace(choices(4, 2, 8, 2), [(1, 3)])])
    assert "does not say how many experts a token has" in refused("llamacpp", path)
    assert import_one("llamacpp", path, experts_per_token=2)[0].layers[0].experts is None
    write(path, [HEADER.replace(",weight", ""), "0,0,0,0,0,0,0,0"])
    assert "has no column weight" in refused("llamacpp", path)


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refused("llamacpp", tmp_path / "missing.csv")
