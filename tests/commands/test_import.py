"""``moetool import`` as people run it: a trace that other commands read, or a message and nothing written."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest

from moetool import cli
from moetool.capture.imports import FORMATS, reader_of
from moetool.capture.trace import open_trace
from tests.capture.recordings import Bomb
from tests.capture.test_imports_esft import write_esft
from tests.capture.test_imports_vllm import choices


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line; exit code, standard output, standard error."""
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def run_main(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moetool", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return run_main


@pytest.fixture
def recordings(tmp_path):
    """Two ESFT folders, of 3 + 2 and 4 tokens, two of six experts each."""
    chosen = choices(9, 2, 6, 2)
    weights = np.full(chosen.shape, 0.5)
    return [
        write_esft(tmp_path / "law", chosen[:5], weights[:5], [3, 2]),
        write_esft(tmp_path / "intent", chosen[5:], weights[5:], [4]),
    ]


def test_every_format_has_a_reader():
    assert all(callable(reader_of(name)) for name in FORMATS)


def test_sources_are_domains_of_one_trace(run, recordings, tmp_path):
    law, intent = recordings
    arguments = ["import", "esft", f"rights={law}", intent, "--experts-per-token", 2, "--experts", 8]
    code, out, err = run(*arguments, "--out", tmp_path / "trace", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["schema"] == "moetool.import/1.0"
    assert (report["summary"]["tokens"], report["summary"]["documents"], report["summary"]["moe_layers"]) == (9, 3, 2)
    assert [row["domain"] for row in report["tables"]["domains"]] == ["rights", "intent"]
    trace = open_trace(tmp_path / "trace")
    assert [document.group for document in trace.documents] == ["law:1", "law:2", "intent:1"]
    assert [layer.experts for layer in trace.layers] == [8, 8]
    assert trace.settings["format"] == "esft"
    assert (trace.model["name"], trace.model["family"]) == ("esft recording", None)
    assert not trace.load_only
    statistics = json.loads(run("route-stats", tmp_path / "trace", "--json")[1])["summary"]
    assert (statistics["tokens"], statistics["moe_layers"]) == (9, 2)


def test_a_finished_trace_is_replaced_only_on_request(run, recordings, tmp_path):
    arguments = ["import", "esft", recordings[0], "--experts-per-token", 2, "--out", tmp_path / "trace"]
    assert run(*arguments)[0] == 0
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "--overwrite replaces it" in err
    assert run(*arguments, "--overwrite")[0] == 0


def test_another_recording_does_not_complete_an_interrupted_import(run, recordings, tmp_path):
    arguments = ["import", "esft", recordings[0], "--experts-per-token", 2, "--out", tmp_path / "trace", "--quiet"]
    assert run(*arguments)[0] == 0
    (tmp_path / "trace" / "layer-002.chosen.npy").unlink()
    assert run(*arguments)[0] == 0
    (tmp_path / "trace" / "layer-002.chosen.npy").unlink()
    text = (recordings[0] / "expert_weights_1.txt").read_text()
    (recordings[0] / "expert_weights_1.txt").write_text(text.replace("0.5", "0.25", 1))
    code, _, err = run(*arguments)
    assert code == 2
    assert "other settings" in err


def test_folders_of_one_name_do_not_share_groups(run, tmp_path):
    chosen = choices(4, 1, 6, 2)
    paths = [write_esft(tmp_path / part / "rank_0", chosen, np.ones(chosen.shape), [4]) for part in "ab"]
    sources = [f"law={path}" for path in paths]
    assert run("import", "esft", *sources, "--experts-per-token", 2, "--out", tmp_path / "trace", "-q")[0] == 0
    assert [document.group for document in open_trace(tmp_path / "trace").documents] == ["1/rank_0:1", "2/rank_0:1"]


def test_the_model_gives_name_and_scoring(run, tmp_path):
    config = {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2,
              "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16, "num_attention_heads": 1,
              "num_key_value_heads": 1}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.save(tmp_path / "run.npy", choices(5, 2, 6, 2))
    arguments = ["import", "vllm", tmp_path / "run.npy", "--model", tmp_path / "config.json"]
    assert run(*arguments, "--out", tmp_path / "trace", "--quiet")[0] == 0
    trace = open_trace(tmp_path / "trace")
    assert (trace.model["family"], len(trace.model["config_sha256"])) == ("mixtral", 64)
    assert [(layer.experts, layer.scoring) for layer in trace.layers] == [(8, "softmax")] * 2


def test_counts_alone_make_a_load_only_trace(run, tmp_path):
    import torch

    torch.save({"logical_count": torch.tensor([[[2, 1, 1, 0]]])}, tmp_path / "dump.pt")
    arguments = ["import", "sglang", tmp_path / "dump.pt", "--experts-per-token", 2, "--out", tmp_path / "trace"]
    assert run(*arguments)[0] == 0
    trace = open_trace(tmp_path / "trace")
    assert trace.load_only
    assert np.bincount(np.asarray(trace.layers[0].chosen).ravel(), minlength=4).tolist() == [2, 1, 1, 0]


def test_an_export_of_counts_is_read_again(run, recordings, tmp_path):
    """Six experts of two, counted over the 5 tokens of a trace."""
    options = ["--experts-per-token", 2, "-q"]
    assert run("import", "esft", recordings[0], *options, "--out", tmp_path / "trace")[0] == 0
    assert run("route-stats", tmp_path / "trace", "--export", tmp_path / "counts.json", "-q")[0] == 0
    assert run("import", "sglang", tmp_path / "counts.json", *options, "--out", tmp_path / "counts")[0] == 0
    first, second = open_trace(tmp_path / "trace"), open_trace(tmp_path / "counts")
    assert second.load_only
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        found = [np.bincount(np.asarray(layer.chosen).ravel(), minlength=6).tolist() for layer in (ours, theirs)]
        assert found[0] == found[1]


@pytest.mark.parametrize("experts", [(4, 6), (6, 4)])
def test_counts_of_other_experts_are_refused_and_nothing_is_written(run, tmp_path, experts):
    paths = [tmp_path / f"{count}.json" for count in experts]
    for path, count in zip(paths, experts, strict=True):
        path.write_text(json.dumps({"logical_count": [[1] * count]}))
    code, _, err = run("import", "sglang", *paths, "--experts-per-token", 2, "--out", tmp_path / "trace")
    assert code == 2
    assert f"layer 0 has {experts[0]} experts in {paths[0]}, and in {paths[1]} there are {experts[1]}" in err
    assert not (tmp_path / "trace").exists()


def test_a_recording_that_memory_does_not_hold(run, tmp_path, monkeypatch):
    def read(*_):
        raise MemoryError

    monkeypatch.setattr("moetool.commands.import_trace.reader_of", lambda _: read)
    np.save(tmp_path / "run.npy", choices(5, 2, 6, 2))
    code, _, err = run("import", "vllm", tmp_path / "run.npy", "--out", tmp_path / "trace")
    assert code == 2
    assert "run.npy does not fit into memory" in err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["import", "tensorflow", "x"], "'tensorflow' is not one of esft, vllm, sglang, llamacpp"),
        (["import", "esft", "/nowhere"], "there is no /nowhere"),
        (["import", "esft", "=x"], "SOURCE =x: expected NAME=FILE"),
        (["import", "esft", "LAW"], "does not say how many experts a token has"),
        (["import", "esft", "LAW", "other=LAW"], "is given twice"),
        (["import", "esft", "LAW", "--revision", "main"], "--revision main goes with --model"),
        (["import", "esft", "LAW", "--model", "/no/model"], "there is no model"),
        (["import", "esft", "LAW", "--experts-per-token", "2", "--experts", "3"], "expert ids must be 0 to 2"),
        (["import", "esft", "LAW", "--model", "demo", "--experts-per-token", "3"], "experts per token in layer"),
    ],
)
def test_wrong_usage_writes_nothing(run, recordings, tmp_path, arguments, error):
    given = [argument.replace("LAW", str(recordings[0])) for argument in arguments]
    code, out, err = run(*given, "--out", tmp_path / "trace")
    assert (code, out) == (2, "")
    assert error in err
    assert "bug" not in err
    assert not (tmp_path / "trace").exists()


def test_sources_that_differ_are_refused(run, tmp_path):
    np.save(tmp_path / "a.npy", choices(5, 2, 6, 2))
    for name, other, error in (("b", choices(5, 3, 6, 2), "layers 0 1"), ("c", choices(5, 2, 6, 3), "other experts")):
        np.save(tmp_path / f"{name}.npy", other)
        code, _, err = run("import", "vllm", tmp_path / "a.npy", tmp_path / f"{name}.npy", "--out", tmp_path / "t")
        assert code == 2
        assert error in err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_pickle_is_read_by_no_format(run, tmp_path, name):
    folder = tmp_path / "source"
    folder.mkdir()
    content = pickle.dumps(Bomb(tmp_path / "ran"))
    for file in ("expert_weights_1.txt", "a.npy", "a.pt", "a.jsonl", "a.csv"):
        (folder / file).write_bytes(content)
    for source in (folder, *folder.iterdir()):
        options = ["--experts-per-token", 2, "--decoder-layers", 2, "--out", tmp_path / "trace"]
        code, _, err = run("import", name, source, *options)
        assert code == 2
        assert "bug" not in err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "trace").exists()
