"""A corpus in parts: the shards together are the trace of one run, byte for byte."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest

from moetool import cli
from moetool.capture import join, record
from moetool.capture.engine import CaptureOptions, capture
from moetool.capture.join import join_traces, missing_shards
from moetool.capture.shards import Shard, parse_shard
from moetool.capture.store import write_trace
from moetool.capture.trace import PROBABILITY_BITS, layer_file, open_trace
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from moetool.statistics.layer_tables import expert_rows
from moetool.statistics.sample import count_tokens, sample_layers
from tests.checkpoints import save_checkpoint, write_corpus

FAMILIES = ("mixtral", "qwen2_moe")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A checkpoint of each family, and a corpus of three domains, the second of which has a single document."""
    folder = tmp_path_factory.mktemp("shards")
    first, last = write_corpus(folder / "corpus")
    (folder / "rare.jsonl").write_text(json.dumps({"text": "one rare document"}))
    documents = read_corpus([first, f"rare={folder / 'rare.jsonl'}", last])
    for family in FAMILIES:
        save_checkpoint(folder / family, family)
    return {family: (locate(str(folder / family)), documents) for family in FAMILIES}


def run(case, folder=None, shard=None, engine="stream", progress=None, **options):
    options = CaptureOptions(engine=engine, device="cpu", batch_tokens=200, shard=shard, **options)
    return capture(*case, options, folder=folder, progress=progress)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("engine", ["stream", "resident"])
@pytest.mark.parametrize("family", FAMILIES)
def test_joined_shards_are_the_whole(cases, tmp_path, family, engine):
    run(cases[family], tmp_path / "whole", engine=engine)
    whole = contents(tmp_path / "whole")
    for count in (1, 2, 3):
        parts = [tmp_path / f"{index}-{count}" for index in range(1, count + 1)]
        for index, part in enumerate(parts, 1):
            run(cases[family], part, f"{index}/{count}", engine)
        traces = [open_trace(part) for part in reversed(parts)]
        write_trace(join_traces(traces), tmp_path / f"joined-{count}")
        assert contents(tmp_path / f"joined-{count}") == whole
        rare = ["rare" in trace.domains for trace in traces]
        assert rare.count(True) == 1
        tokens = [len(trace.tokens) for trace in traces]
        assert max(tokens) < 1.6 * sum(tokens) / count, "the load is about even"


def test_shards_in_memory_are_those_in_folders(cases, tmp_path):
    memory, folder = run(cases["mixtral"], None, "2/2"), run(cases["mixtral"], tmp_path / "part", "2/2")
    assert memory.shard == folder.shard
    assert memory.documents == folder.documents
    np.testing.assert_array_equal(memory.layers[0].probability_sum, folder.layers[0].probability_sum)


def test_what_a_shard_says_of_itself(cases, tmp_path):
    whole = run(cases["mixtral"], tmp_path / "whole")
    part = run(cases["mixtral"], tmp_path / "part", "2/3")
    assert "shard" not in json.loads((tmp_path / "whole" / "trace.json").read_text())
    assert not list((tmp_path / "whole").glob("*probability_sum*"))
    assert whole.shard is None
    header = json.loads((tmp_path / "part" / "trace.json").read_text())["shard"]
    assert (header["index"], header["count"]) == (2, 3)
    assert [(document.domain, document.id) for document in part.documents] == [
        (whole.documents[index].domain, whole.documents[index].id) for index in header["documents"]
    ]
    assert set(part.vocabulary) == set(part.tokens.tolist())
    layer, counted = part.layers[0], part.counted_tokens_of_domain()
    mean = layer.probability_sum / 2.0**PROBABILITY_BITS / counted[:, None]
    np.testing.assert_array_equal(layer.probability, mean.astype(np.float32))
    np.testing.assert_allclose(mean.sum(1), 1, atol=1e-6)
    assert all(expert_rows(sample) for sample in sample_layers(part, count_tokens(part)))  # it has its own statistics


def test_some_shards_keep_the_order_of_the_whole(cases):
    whole = run(cases["mixtral"])
    parts = [run(cases["mixtral"], None, f"{index}/4") for index in (4, 1, 2)]
    joined = join_traces(parts)
    names = [(document.domain, document.id) for document in joined.documents]
    kept = [document for document in whole.documents if (document.domain, document.id) in names]
    assert names == [(document.domain, document.id) for document in kept]
    rows = np.concatenate([np.arange(document.start, document.start + document.tokens) for document in kept])
    for one, other in zip(joined.layers, whole.layers, strict=True):
        np.testing.assert_array_equal(one.chosen, other.chosen[rows])
        np.testing.assert_array_equal(one.scores, other.scores[rows])
    assert missing_shards(parts) == ["3 of 4 shards of a corpus are given: without 3"]
    assert missing_shards([whole, parts[0]]) == ["1 of 4 shards of a corpus are given: without 1, 2, 3"]
    assert missing_shards([whole]) == []
    with pytest.raises(MoetoolError, match="in two of the traces"):
        join_traces([*parts, parts[1]])


def test_traces_of_two_corpora_do_not_mix(cases, tmp_path):
    """Shards of one whole come together where the first of them is; another trace stays before or after."""
    checkpoint, documents = cases["mixtral"]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": f"more {i}"}) + "\n" for i in range(3)))
    more = run((checkpoint, read_corpus([f"rare={tmp_path / 'more.jsonl'}"])))
    second, first = (run((checkpoint, documents), None, shard) for shard in ("2/2", "1/2"))
    whole = run((checkpoint, documents))
    ids = [document.id for document in whole.documents]
    other = [document.id for document in more.documents]
    assert [document.id for document in join_traces([second, more, first]).documents] == ids + other
    joined = join_traces([more, first, second])
    assert [document.id for document in joined.documents] == other + ids
    assert joined.domains[0] == "rare"
    assert joined.counted_tokens_of_domain().sum() == (~joined.special).sum()


def test_without_sums_means_are_joined(cases, monkeypatch):
    whole, parts = run(cases["mixtral"]), [run(cases["mixtral"], None, f"{index}/2") for index in (1, 2)]
    expected = [layer.probability for layer in whole.layers]
    monkeypatch.setattr(join, "MOST_COUNTED_TOKENS", 10)  # as if there were too many to add
    large = join_traces(parts)
    monkeypatch.undo()
    old = [replace(part, layers=tuple(replace(layer, probability_sum=None) for layer in part.layers)) for part in parts]
    for joined in (large, join_traces(old), join_traces([parts[0], old[1]])):
        for layer, mean in zip(joined.layers, expected, strict=True):
            assert layer.probability_sum is None
            np.testing.assert_allclose(layer.probability, mean, rtol=1e-5)


def test_wrong_shards_are_refused(cases):
    assert parse_shard(" 2/10 ") == Shard(2, 10)
    for text in ("0/2", "3/2", "1/0", "2", "a/b", "", "-1/2", "1/2/3", "1.0/2"):
        with pytest.raises(MoetoolError, match="not one of N parts") as caught:
            run(cases["mixtral"], None, text)
        assert "1/2" in caught.value.hint
    with pytest.raises(MoetoolError, match="batches only, too few for 50 shards") as caught:
        run(cases["mixtral"], None, "1/50")
    assert "--batch-tokens" in caught.value.hint


def test_too_many_tokens_for_the_sums(cases, monkeypatch):
    monkeypatch.setattr(record, "MOST_COUNTED_TOKENS", 10)
    with pytest.raises(MoetoolError, match=r"domain 'd0' has .* tokens") as caught:
        run(cases["mixtral"])
    assert "--max-tokens 10" in caught.value.hint


class Interrupting(SilentProgress):
    """Notes titles, and interrupts when a layer begins."""

    def __init__(self, at=None):
        self.at, self.titles = at, []

    def step(self, title, total=None):
        self.titles.append(title)
        if title == self.at:
            raise KeyboardInterrupt
        return super().step(title, total)


def test_a_shard_resumes_and_others_are_refused(cases, tmp_path):
    run(cases["mixtral"], tmp_path / "expected", "2/2")
    with pytest.raises(KeyboardInterrupt):
        run(cases["mixtral"], tmp_path / "part", "2/2", progress=Interrupting("layer 2"))
    assert (tmp_path / "part" / layer_file(1, "chosen")).exists()
    for shard in ("1/2", "2/3", None):
        with pytest.raises(MoetoolError, match="a trace with other shard"):
            run(cases["mixtral"], tmp_path / "part", shard)
    run(cases["mixtral"], tmp_path / "part", "2/2")
    assert contents(tmp_path / "part") == contents(tmp_path / "expected")
    with pytest.raises(MoetoolError, match="finished"):
        run(cases["mixtral"], tmp_path / "part", "2/2")


def test_damaged_shards_are_refused(cases, tmp_path):
    run(cases["mixtral"], tmp_path, "1/2")
    header = json.loads((tmp_path / "trace.json").read_text())
    shard = header["shard"]
    for change in (
        {"index": 3}, {"index": 0}, {"index": "1"}, {"count": None}, {"whole": 1}, {"documents": [0]},
        {"documents": None}, {"documents": shard["documents"][::-1]}, {"documents": [-1, *shard["documents"][1:]]},
    ):  # fmt: skip
        (tmp_path / "trace.json").write_text(json.dumps({**header, "shard": {**shard, **change}}))
        with pytest.raises(MoetoolError, match="field"):
            open_trace(tmp_path)
    (tmp_path / "trace.json").write_text(json.dumps(header))
    sums = np.load(tmp_path / layer_file(0, "probability_sum"))
    np.save(tmp_path / layer_file(0, "probability_sum"), sums.astype(np.float64))
    with pytest.raises(MoetoolError, match="float64, not int64"):
        open_trace(tmp_path)


def test_layers_without_a_header_are_not_taken_over(cases, tmp_path):
    """An interrupted --overwrite removes trace.json first: what is left may be of any trace."""
    run(cases["mixtral"], tmp_path / "whole")
    run(cases["mixtral"], tmp_path / "trace", max_length=9)
    (tmp_path / "trace" / "trace.json").unlink()
    run(cases["mixtral"], tmp_path / "trace")
    assert contents(tmp_path / "trace") == contents(tmp_path / "whole")


def test_shards_on_the_command_line(cases, tmp_path, monkeypatch, capsys):
    """Tables of all shards are those of the whole; a forgotten shard is told."""
    before = signal.getsignal(signal.SIGTERM)

    def report(*arguments):
        monkeypatch.setattr(sys, "argv", ["moetool", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        assert caught.value.code == 0, streams.err
        return json.loads(streams.out), streams.err

    checkpoint, documents = cases["mixtral"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": document.text}) + "\n" for document in documents))
    capture = ["capture", checkpoint.name, "--text", tmp_path / "text.jsonl", "--batch-tokens", 200]
    whole, _ = report(*capture, "--out", tmp_path / "whole")
    assert whole["options"]["shard"] is None
    for index in (1, 2):
        part, _ = report(*capture, "--shard", f"{index}/2", "--out", tmp_path / str(index))
        assert part["options"]["shard"] == f"{index}/2"
        assert part["summary"]["tokens"] < whole["summary"]["tokens"]
    expected, _ = report("route-stats", tmp_path / "whole")
    joined, notes = report("route-stats", tmp_path / "2", tmp_path / "1")
    assert (joined["summary"], joined["tables"]) == (expected["summary"], expected["tables"])
    assert notes == ""
    assert report("route-stats", tmp_path / "2")[1] == "1 of 2 shards of a corpus are given: without 1\n"
    signal.signal(signal.SIGTERM, before)
