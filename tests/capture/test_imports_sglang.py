"""Dumps and responses of SGLang: counts are dealt out exactly, copies of experts are merged, nothing is unpickled."""

from __future__ import annotations

import base64
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moetool.capture.imports.sglang_dump import deal
from tests.capture.recordings import Bomb, import_one, refused
from tests.capture.test_imports_vllm import choices


def counts_of(chosen, experts):
    """``[L, E]`` tokens of each expert."""
    return np.stack([np.bincount(chosen[:, layer].ravel(), minlength=experts) for layer in range(chosen.shape[1])])


@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 4), st.integers(0, 2**16))
def test_counts_are_dealt_out_with_no_expert_twice(tokens, per_token, more, seed):
    experts = per_token + more
    counts = counts_of(choices(tokens, 1, experts, per_token, seed), experts)[0]
    dealt = deal(counts, tokens)
    assert dealt.shape == (tokens, per_token)
    assert all(len(set(row)) == per_token for row in dealt.tolist())
    np.testing.assert_array_equal(np.bincount(dealt.ravel(), minlength=experts), counts)


def test_a_stat_dump_gives_a_document_per_pass(tmp_path):
    passes = [choices(4, 3, 6, 2, seed) for seed in (1, 2)]
    counts = np.zeros((5, 3, 6), np.int32)  # a buffer that is not full
    for index, chosen in enumerate(passes):
        chosen[:, 0] = 0
        counts[2 * index, 1:] = counts_of(chosen, 6)[1:]
    torch.save({"rank": 0, "logical_count": torch.tensor(counts)}, tmp_path / "dump.pt")
    recording, _ = import_one("sglang", tmp_path / "dump.pt", experts_per_token=2)
    assert recording.load_only
    assert [(one.id, one.tokens) for one in recording.documents] == [("dump:pass 1", 4), ("dump:pass 3", 4)]
    assert list(recording.layers) == [1, 2]
    for number, layer in recording.layers.items():
        assert layer.experts == 6
        for index in (0, 1):
            found = np.bincount(layer.chosen[4 * index : 4 * index + 4].ravel(), minlength=6)
            np.testing.assert_array_equal(found, counts[2 * index, number])


@pytest.mark.parametrize(
    ("counts", "per_token", "message"),
    [
        ([[[2, 1, 0]]], 2, "pass 1, layer 0: 3 choices, 2 of one expert"),
        ([[[3, 1, 0]]], 2, "pass 1, layer 0: 4 choices, 3 of one expert"),
        ([[[2, 2, 0], [2, 2, 2]]], 2, "pass 1, layer 1: 6 choices, 2 of one expert"),
        ([[[1, 1, 0]], [[2, 1, 0]]], 2, "pass 2, layer 0"),
        ([[[2, -1, 1]]], 2, "pass 1: a count is negative"),
        ([[[0, 0, 0]]], 2, "holds counts only"),
        ([[[1, 1, 0]]], None, "holds counts only, not how many experts a token has"),
        ([1, 1, 0], 2, "logical_count is int64 [3], not 2 or 3 axes"),
        ([[[10**13, 10**13, 0]]], 2, "pass 1: a count is negative, or above 2,147,483,648"),
        ([[[2**62, 2**62, 0]]], 2, "pass 1: a count is negative, or above 2,147,483,648"),
        ([[[2**31, 2**31, 0]]] * 2, 2, "counts 4,294,967,296 tokens, more than 2,147,483,648"),
        ([[[0.5, 1, 0]]], 2, "logical_count is float32"),
    ],
)
def test_impossible_counts_are_named(tmp_path, counts, per_token, message):
    torch.save({"logical_count": torch.tensor(counts)}, tmp_path / "dump.pt")
    assert message in refused("sglang", tmp_path / "dump.pt", experts_per_token=per_token)


def test_copies_of_experts_are_counted_together(tmp_path):
    record = {"forward_pass_id": 7, "rank": 0, "global_physical_count": torch.tensor([[2, 1, 2, 3], [1, 2, 2, 3]])}
    logical = torch.tensor([[0, 1, 2, 0], [1, 0, 2, 1]])
    dump = {"records": [record], "last_physical_to_logical_map": logical}
    torch.save(dump, tmp_path / "dump.pt")
    assert "pass 1, layer 0: 8 choices, 5 of one" in refused("sglang", tmp_path / "dump.pt", experts_per_token=2)
    record["global_physical_count"] = torch.tensor([[2, 2, 2, 2], [1, 2, 2, 3]])
    torch.save(dump, tmp_path / "dump.pt")
    recording, _ = import_one("sglang", tmp_path / "dump.pt", experts_per_token=2)
    found = [np.bincount(layer.chosen.ravel()).tolist() for layer in recording.layers.values()]
    assert found == [[4, 2, 2], [2, 4, 2]]


def test_copies_of_more_experts_than_there_can_be_are_refused(tmp_path):
    record = {"global_physical_count": torch.ones(1, 2, dtype=torch.int64)}
    torch.save({"records": [record], "last_physical_to_logical_map": torch.tensor([[0, 10**12]])}, tmp_path / "dump.pt")
    message = refused("sglang", tmp_path / "dump.pt", experts_per_token=2)
    assert "last_physical_to_logical_map must hold experts 0 to 65,535" in message


@pytest.mark.parametrize("axes", [2, 3])
def test_counts_in_json_are_those_of_a_dump(tmp_path, axes):
    counts = [[0, 0, 0], [2, 1, 1]]
    (tmp_path / "counts.json").write_text(json.dumps({"logical_count": counts if axes == 2 else [counts]}))
    recording, _ = import_one("sglang", tmp_path / "counts.json", experts_per_token=2)
    assert recording.load_only
    assert [(one.id, one.tokens) for one in recording.documents] == [("counts:pass 1", 2)]
    assert list(recording.layers) == [1]
    assert np.bincount(recording.layers[1].chosen.ravel()).tolist() == [2, 1, 1]
    (tmp_path / "counts.json").write_text('{"logical_count": [[1, 2], [3]]}')
    assert "logical_count is" in refused("sglang", tmp_path / "counts.json", experts_per_token=2)


def token_dump(passes):
    """Records of ``(forward, lengths, positions, [T, L, K])`` passes of a model without copies of experts."""
    records = []
    for lengths, positions, chosen in passes:
        tokens, layers, per_token = chosen.shape
        slots = np.full((layers, tokens, 8), -1)
        slots[1:, :, :per_token] = np.moveaxis(chosen, 0, 1)[1:]  # layer 0 is dense
        records.append(
            {
                "forward_pass_id": len(records),
                "input_ids": [100 + position for position in positions],
                "positions": positions,
                "extend_seq_lens": lengths,
                "topk_ids_of_layer": torch.tensor(slots, dtype=torch.int32),
            }
        )
    return {"records": records, "last_physical_to_logical_map": torch.arange(16).expand(3, 16)}


def test_tokens_of_one_sequence_are_joined_and_those_of_several_are_not(tmp_path):
    chosen = choices(12, 3, 16, 2)
    passes = [
        ([3, 2], [0, 1, 2, 0, 1], chosen[:5]),  # two prompts
        (None, [3, 2], chosen[5:7]),  # a token of each
        ([3], [0, 1, 2], chosen[7:10]),  # one prompt
        (None, [3], chosen[10:11]),  # goes on
        (None, [4], chosen[11:]),
    ]
    torch.save(token_dump(passes), tmp_path / "dump.pt")
    recording, notes = import_one("sglang", tmp_path / "dump.pt")
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(3, 3), (2, 2), (1, 0), (1, 0), (5, 3)]
    assert len({one.id for one in recording.documents}) == 5
    assert list(recording.layers) == [1, 2]
    np.testing.assert_array_equal(recording.layers[2].chosen, chosen[:, 2])
    assert recording.token_ids is not None
    assert recording.token_ids[-1] == 104
    assert any("layer 0" in note for note in notes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("positions", [0, 1], "record 1: 3 tokens, 2 positions"),
        ("extend_seq_lens", [4, -1], "record 1: extend_seq_lens holds -1"),
        ("input_ids", [1, 2**40, 3], "record 1: token 2 has id 1099511627776"),
        ("input_ids", [1, 2, -1], "record 1: token 3 has id -1"),
        ("extend_seq_lens", [2], "record 1: 3 tokens, 3 positions, 2 in all"),
        ("input_ids", [1, 2], "record 1: 2 tokens and 3 layers, but routing of [3, 3, 8]"),
        ("input_ids", None, "record 1: input_ids is object"),
        ("topk_ids_of_layer", torch.full((3, 3, 8), 16), "record 1: physical experts must be 0 to 15"),
    ],
)
def test_malformed_records_are_named(tmp_path, key, value, message):
    dump = token_dump([([3], [0, 1, 2], choices(3, 3, 16, 2))])
    dump["records"][0][key] = value
    torch.save(dump, tmp_path / "dump.pt")
    assert message in refused("sglang", tmp_path / "dump.pt")


@pytest.mark.parametrize("content", [{}, [], {"records": []}, {"records": [1]}, {"records": [{}]}])
def test_other_torch_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "dump.pt")
    assert refused("sglang", tmp_path / "dump.pt").startswith(str(tmp_path))


def test_no_pickle_runs(tmp_path):
    path = tmp_path / "dump.pt"
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"logical_count": Bomb(tmp_path / "ran")}, path)
        assert "cannot be read as tensors and plain values" in refused("sglang", path, experts_per_token=2)
        assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "ran").exists()


def response(chosen, **meta):
    return {
        "output_ids": [7, 8, 9],
        "meta_info": {"routed_experts": base64.b64encode(chosen.astype("<i4").tobytes()).decode(), **meta},
    }


SHAPE = {"decoder_layers": 3, "experts_per_token": 2, "experts": 8}


def test_responses_have_prompts_and_generated_tokens(tmp_path):
    chosen = choices(6, 3, 8, 2)
    chosen[:, 0] = 0
    counts = {"prompt_tokens": 4, "completion_tokens": 3}
    lines = [response(chosen, **counts), response(chosen[2:], **counts), response(chosen)]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    recording, _ = import_one("sglang", tmp_path / "run.jsonl", **SHAPE)
    # The second request asked for the rows from token 2 on; the third does not say where its prompt ended.
    assert [(one.tokens, one.prompt_tokens) for one in recording.documents] == [(6, 4), (4, 2), (6, None)]
    assert list(recording.layers) == [1, 2]
    np.testing.assert_array_equal(recording.layers[1].chosen[6:10], chosen[2:, 1])
    assert recording.token_ids is not None
    assert recording.token_ids.tolist() == [0, 0, 0, 0, 7, 8] + [0, 0, 7, 8] + [0] * 6
    (tmp_path / "one.json").write_text(json.dumps(lines[0]))
    assert len(import_one("sglang", tmp_path / "one.json", **SHAPE)[0].documents) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "response 1 has no meta_info.routed_experts"),
        ("[1]\n", "response 1 has no meta_info.routed_experts"),
        ("{", "line 1 is no JSON"),
        ("\xff", "line 1 is no JSON"),
        ("", "holds no response"),
        (json.dumps({"meta_info": {"routed_experts": "A"}}), "response 1: routed_experts is no base64"),
        (json.dumps({"meta_info": {"routed_experts": "AAAA"}}), "has 3 bytes, not 4 x 3 layers x 2 experts"),
        (json.dumps(response(choices(6, 3, 8, 2), prompt_tokens=-1)), "prompt_tokens is -1"),
        (
            json.dumps(response(choices(6, 3, 8, 2), prompt_tokens=1, completion_tokens=1)),
            "routing of 6 tokens, and 1 + 1 tokens",
        ),
        (json.dumps(response(choices(6, 3, 9, 2, 4))), "document 1 (run:1), token"),
    ],
)
def test_malformed_responses_are_named(tmp_path, text, message):
    (tmp_path / "run.jsonl").write_text(text, encoding="utf-8")
    assert message in refused("sglang", tmp_path / "run.jsonl", **SHAPE)


def test_blank_lines_and_a_byte_order_mark_are_no_responses(tmp_path):
    line = json.dumps(response(choices(6, 3, 8, 2)))
    (tmp_path / "run.jsonl").write_text(f"{line}\n\n", encoding="utf-8-sig")
    assert len(import_one("sglang", tmp_path / "run.jsonl", **SHAPE)[0].documents) == 1


def test_shapes_are_asked_for(tmp_path):
    (tmp_path / "run.jsonl").write_text(json.dumps(response(choices(6, 3, 8, 2))))
    assert "how many layers" in refused("sglang", tmp_path / "run.jsonl")
    assert "how many experts a token has" in refused("sglang", tmp_path / "run.jsonl", decoder_layers=3)
    assert "neither .pt nor .json" in refused("sglang", tmp_path / "run.txt")
