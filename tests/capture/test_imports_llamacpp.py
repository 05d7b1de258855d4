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
    assert len(notes) == 2
    assert "layer 4 is left out" in notes[0]
    assert "batches of several tokens are taken for prompts" in notes[1]


def test_files_one_after_another_are_documents(tmp_path):
    chosen = choices(12, 3, 8, 2)
    path = write(tmp_path / "a.csv", moe_trace(chosen, [5, 1, 1, 4, 1], last_layer_short=False))
    recording, notes = import_one("llamacpp", path)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(7, 5), (5, 4)]
    np.testing.assert_array_equal(recording.layers[3].chosen, chosen[:, 2])
    assert len(notes) == 1


def test_single_tokens_do_not_tell_where_a_prompt_ended(tmp_path):
    chosen = choices(6, 3, 8, 2)
    path = write(tmp_path / "a.csv", moe_trace(chosen, [1] * 6))
    recording, notes = import_one("llamacpp", path)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(6, None)]
    assert notes == []
    write(path, moe_trace(chosen, [1, 1, 3, 1], last_layer_short=False))
    recording, notes = import_one("llamacpp", path)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(2, None), (4, 3)]
    assert len(notes) == 1


@pytest.mark.parametrize("header", ["layer,expert", "Layer, Expert", "expert,layer"])
def test_a_header_names_the_columns(tmp_path, header):
    chosen = choices(5, 3, 8, 2)
    rows = moe_trace(chosen, [4, 1], last_layer_short=False)
    if header.startswith("e"):
        rows = [",".join(reversed(row.split(","))) for row in rows]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["# a comment", "", header, *rows]), encoding="utf-8-sig")
    recording, _ = import_one("llamacpp", path)
    np.testing.assert_array_equal(recording.layers[3].chosen, chosen[:, 2])


def test_choices_that_happen_to_differ_are_no_rankings(tmp_path):
    """Three tokens that choose one of 8 experts differ in both layers in 43 of 100 prompts."""
    path = tmp_path / "a.csv"
    for seed in range(60):
        chosen = choices(5, 2, 8, 1, seed)
        write(path, moe_trace(chosen, [3, 1, 1], last_layer_short=False))
        recording, _ = import_one("llamacpp", path, experts=8, experts_per_token=1)
        assert recording.documents[0].tokens == 5, seed
        np.testing.assert_array_equal(recording.layers[2].chosen, chosen[:, 1])


def test_rankings_are_told_by_how_unlikely_they_are(tmp_path):
    """A prompt of 4 tokens that chooses each of 4 experts once: 4! / 4**4 in each layer, which 6 times is 6.8e-7."""
    for layers, tokens in ((5, 5), (6, 1)):
        prompt = np.tile(np.arange(4)[:, None, None], (1, layers, 1))
        chosen = np.concatenate([prompt, np.zeros((1, layers, 1), int)])
        path = write(tmp_path / "a.csv", moe_trace(chosen, [4, 1], last_layer_short=False))
        recording, _ = import_one("llamacpp", path, experts=4, experts_per_token=1)
        assert sum(one.tokens for one in recording.documents) == tokens


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
    assert "whole rankings" in notes[0]
    path = write(tmp_path / "b.csv", rows[:36])
    assert "holds rankings of prompts only" in refused("llamacpp", path, experts=16, experts_per_token=2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,1", "0,x"], "row 2: expert is 'x'"),
        (["# a comment", "0,1", "", "0,1,2"], "row 2: 2 columns are expected, not 3"),
        (["0,1,2"], "row 1: 2 columns are expected, not 3"),
        (["0,1", "0,-1"], "row 2: expert is -1"),
        (["0,1", "0,0.5"], "row 2: expert is 0.5"),
        (["0,1", "0,nan"], "row 2: expert is nan"),
        (["0,1", "0,99999999999999999999"], "row 2: expert is 1e+20"),
        (["0,1", "0,65536"], "row 2: expert is 65536"),
        (["0,1", "2000000000000,1"], "row 2: layer is 2e+12"),
        (["0,1", "100000,1"], "row 2: layer is 100000"),
        (["layer,expert", "0,1", "0,x"], "row 2 after the header: expert is 'x'"),
        (["layer,expert"], "holds no row"),
        (["expert,weight", "0,1"], "has no column layer"),
        (["layer,expert,weight", "0,1,0.5"], "has no column step"),
        (["some text"], "has no column layer"),
        (["# nothing else"], "holds no row"),
        (["0,1", "1,1", "1,2", "2,0", "0,1", "2,1"], "row 6: layer 2 is out of turn"),
        (["0,1", "1,1", "0,1"], "row 3: layer 0 is the last of the file"),
        (["0,1", "0,2", "1,1", "1,2", "1,3"], "rows 3 to 5, layer 1: not as many tokens with 2 experts"),
        (["0,1", "0,2", "1,1", "1,8"], "token 1, layer 1: expert ids must be 0 to 7"),
        (["0,1", "0,2", "1,1", "1,1"], "token 1, layer 1: an expert is chosen twice"),
        ([], "holds no row"),
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
    rows[1] = rows[1][:-1] + "0"
    write(path, [*PREAMBLE, HEADER + ",dropped", *rows])
    layer = import_one("llamacpp", path)[0].layers[0]
    assert layer.dropped is not None
    assert not layer.dropped.any()
    rows[1] = rows[1][:-1] + "nan"
    write(path, [*PREAMBLE, HEADER + ",dropped", *rows])
    assert "row 2 after the header: dropped is nan" in refused("llamacpp", path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "layer 2: a token lacks one of slots 0 to 1"),
        (lambda rows: [*rows[:1], rows[0], *rows[2:]], "layer 0: a token lacks one of slots 0 to 1, or has it twice"),
        (lambda rows: [rows[0].replace("0.5", "nan"), *rows[1:]], "token 1, layer 0: a weight is not finite"),
        (lambda rows: ["0,0,-1,0,0,1,0.5,1,0", *rows[1:]], "row 1 after the header: step is -1"),
        (lambda rows: ["0,0,0,0,0,1.5,0.5,1,0", *rows[1:]], "row 1 after the header: expert is 1.5"),
        (lambda rows: ["0,0,0,0,0,9,0.5,1,0", *rows[1:]], "expert ids must be 0 to 7"),
        (
            lambda rows: [row.rpartition(",")[0] for row in rows],
            "row 1 after the header: 9 columns are expected, not 8",
        ),
        (lambda rows: [*rows, "x"], "row 25 after the header: 9 columns are expected, not 1"),
        (lambda rows: ["0,x,0,0,0,1,0.5,1,0", *rows[1:]], "row 1 after the header: phase is 'x'"),
        (lambda rows: ["0,2,0,0,0,1,0.5,1,0", *rows[1:]], "row 1 after the header: phase is 2"),
        (lambda rows: ["0,0,0,100000,0,1,0.5,1,0", *rows[1:]], "row 1 after the header: layer is 100000"),
        (lambda rows: ["0,0,0,0,0,70001,0.5,1,0", *rows[1:]], "row 1 after the header: expert is 70001"),
        (lambda rows: [row for row in rows if not row.startswith("0,1,1,1")], "layer 1 has other tokens"),
        (lambda rows: [], "holds no row"),
    ],
)
def test_malformed_route_traces_are_named(tmp_path, change, message):
    rows = route_trace(choices(4, 3, 8, 2), [(1, 3)])
    path = write(tmp_path / "a.csv", [*PREAMBLE, HEADER, *change(rows)])
    assert message in refused("llamacpp", path)


def test_a_route_trace_without_its_preamble(tmp_path):
    path = write(tmp_path / "a.csv", [HEADER, *route_trace(choices(4, 2, 8, 2), [(1, 3)])])
    layer = import_one("llamacpp", path)[0].layers[0]
    assert (layer.experts, layer.chosen.shape) == (None, (4, 2))
    write(path, [HEADER.replace("step", "time"), "0,0,0,0,0,0,0.5,0,0"])
    assert "has no column step" in refused("llamacpp", path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("turn,phase,step,layer,slot,expert,weight", ("prefill", "decode")),
        ("weight,expert,slot,layer,step,phase,turn", ("p", "d")),
        ("turn,phase,step,layer,slot,expert", ("Prefill", "D")),
        ("step,layer,slot,expert,weight", None),
        ("step,layer,expert", None),
    ],
)
def test_columns_of_a_route_trace_are_found_by_name(tmp_path, columns, words):
    chosen = choices(5, 2, 8, 2)
    rows = [dict(zip(HEADER.split(","), row.split(","), strict=True)) for row in route_trace(chosen, [(3, 2)])]
    if words:
        rows = [{**row, "phase": words[int(row["phase"])]} for row in rows]
    path = write(tmp_path / "a.csv", [columns, *(",".join(row[name] for name in columns.split(",")) for row in rows)])
    if "slot" not in columns:
        assert "does not say how many experts a token has" in refused("llamacpp", path)
    recording, _ = import_one("llamacpp", path, experts_per_token=None if "slot" in columns else 2)
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(5, 3 if words else None)]
    np.testing.assert_array_equal(recording.layers[0].chosen, chosen[:, 0])
    assert (recording.layers[0].weight is not None) == ("weight" in columns)


def test_a_token_without_slots_that_lacks_a_row(tmp_path):
    rows = [f"{step},0,{expert}" for step, expert in ((0, 1), (0, 2), (0, 3), (1, 4))]
    message = refused("llamacpp", write(tmp_path / "a.csv", ["step,layer,expert", *rows]), experts_per_token=2)
    assert "layer 0: a token lacks one of slots 0 to 1, or has it twice" in message


@pytest.mark.parametrize(
    ("declared", "message"),
    [("0", "be 0 experts"), ("999999", "be 999,999 experts"), ("9" * 5000, "be 999,999,999 experts")],
)
def test_impossible_declarations_are_refused(tmp_path, declared, message):
    rows = route_trace(choices(4, 2, 8, 2), [(1, 3)])
    assert message in refused("llamacpp", write(tmp_path / "a.csv", [f"# n_expert={declared}", HEADER, *rows]))


def test_blank_lines_and_a_byte_order_mark_before_the_header(tmp_path):
    rows = route_trace(choices(4, 1, 8, 2), [(1, 3)])
    (tmp_path / "a.csv").write_text("\n".join(["", *PREAMBLE, "", HEADER, *rows]), encoding="utf-8-sig")
    assert import_one("llamacpp", tmp_path / "a.csv")[0].layers[0].experts == 8


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refused("llamacpp", tmp_path / "missing.csv")
