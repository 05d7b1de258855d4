"""A trace folder that was interrupted, filled, or is not ours."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from moetool.capture import stream
from moetool.capture.engine import CaptureOptions, capture
from moetool.capture.hidden import HiddenStates, _Waiting, _write, saved_layers
from moetool.capture.join import join_traces
from moetool.capture.trace import layer_file, open_trace
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from tests.checkpoints import save_checkpoint, write_corpus


class Interrupting(SilentProgress):
    """Counts the steps and interrupts the run inside the n-th batch."""

    def __init__(self, after: int | None = None) -> None:
        self.left, self.titles, self.notes = after, [], []

    @contextmanager
    def step(self, title, total=None):
        self.titles.append(title)

        def advance(amount):
            if self.left is not None and title != "layers":
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt

        yield advance

    def note(self, message):
        self.notes.append(message)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    save_checkpoint(folder / "model", "qwen2_moe", mlp_only_layers=[1], num_hidden_layers=4)
    return locate(str(folder / "model")), read_corpus(write_corpus(folder / "corpus"))


def run(case, folder, engine="stream", progress=None, overwrite=False, **options):
    options = CaptureOptions(engine=engine, device="cpu", batch_tokens=200, **options)
    return capture(*case, options, folder=folder, overwrite=overwrite, progress=progress)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_anywhere_and_resumed_is_the_same_trace(case, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STATE_COST_SHARE", float("inf"))
    whole = Interrupting()
    run(case, tmp_path / "whole", progress=whole)
    expected = contents(tmp_path / "whole")
    batches = 0
    while True:  # one more batch each time, until the run is not interrupted any more
        folder = tmp_path / f"part{batches}"
        try:
            run(case, folder, progress=Interrupting(after=batches))
            break
        except KeyboardInterrupt:
            pass
        resumed = Interrupting()
        run(case, folder, progress=resumed)
        assert contents(folder) == expected
        batches += 1
    assert batches > 8
    assert "layer 0" not in resumed.titles, "finished layers are not computed again"
    assert "layer 3" in resumed.titles


def test_resumed_without_saved_hidden_states(case, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STATE_COST_SHARE", -1.0)
    run(case, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "part", progress=Interrupting(after=9))
    assert not list(saved_layers(tmp_path / "part"))
    run(case, tmp_path / "part")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_interrupted_resident_run(case, tmp_path):
    run(case, tmp_path / "whole", engine="resident")
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "part", engine="resident", progress=Interrupting(after=1))
    run(case, tmp_path / "part", engine="resident")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_folder_equals_memory(case, tmp_path):
    saved, memory = run(case, tmp_path / "trace"), run(case, None)
    assert saved.documents == memory.documents
    assert saved.vocabulary == memory.vocabulary
    for a, b in zip(saved.layers, memory.layers, strict=True):
        for part in ("chosen", "weight", "scores", "probability"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    assert saved.layers[0].chosen.dtype == np.uint8


def test_other_contents_are_refused(case, tmp_path):
    folder = tmp_path / "trace"
    run(case, folder)
    before = contents(folder)
    with pytest.raises(MoetoolError, match="finished"):
        run(case, folder)
    with pytest.raises(MoetoolError, match="other settings"):
        run(case, folder, seed=1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    for overwrite in (False, True):
        with pytest.raises(MoetoolError, match="not empty"):
            run(case, tmp_path / "photos", overwrite=overwrite)
    assert contents(tmp_path / "photos") == {"cat.png": b"meow"}
    with pytest.raises(MoetoolError, match="is a file"):
        run(case, tmp_path / "photos" / "cat.png")
    assert contents(folder) == before
    run(case, folder, overwrite=True, max_length=30)
    assert open_trace(folder).settings["max_length"] == 30


def test_full_disk_is_an_error_and_keeps_finished_layers(case, tmp_path, monkeypatch):
    import moetool.capture.store as store

    real = np.save

    def full(file, array, **options):
        if array.dtype == np.float32 and len(list((tmp_path / "trace").glob("*.chosen.npy"))) == 2:
            raise OSError(28, "No space left on device")
        real(file, array, **options)

    monkeypatch.setattr(store.np, "save", full)
    with pytest.raises(MoetoolError, match="No space left"):
        run(case, tmp_path / "trace")
    assert not list((tmp_path / "trace").glob("*.partial"))
    monkeypatch.undo()
    run(case, tmp_path / "trace")
    assert len(open_trace(tmp_path / "trace").layers) == 3


def damage_header(folder, **changes):
    header = json.loads((folder / "trace.json").read_text())
    (folder / "trace.json").write_text(json.dumps({**header, **changes}))


def test_damaged_traces_are_refused(case, tmp_path):
    def fresh(name):
        run(case, tmp_path / name)
        return tmp_path / name

    folder = fresh("a")
    (folder / layer_file(2, "chosen")).unlink()
    with pytest.raises(MoetoolError, match="unfinished"):
        open_trace(folder)
    folder = fresh("b")
    np.save(folder / layer_file(0, "chosen"), np.full((3, 3), 7, dtype=np.uint8))
    with pytest.raises(MoetoolError, match="shape"):
        open_trace(folder)
    folder = fresh("c")
    chosen = np.load(folder / layer_file(0, "chosen"))
    np.save(folder / layer_file(0, "chosen"), np.full_like(chosen, 200))
    with pytest.raises(MoetoolError, match="chose expert 200 of 8"):
        open_trace(folder)
    folder = fresh("d")
    np.save(folder / layer_file(0, "chosen"), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(MoetoolError, match="cannot be read"):
        open_trace(folder)
    folder = fresh("e")
    for changes in ({"schema": "moetool.trace/2.0"}, {"schema": 3}):
        damage_header(folder, **changes)
        with pytest.raises(MoetoolError, match="schema"):
            open_trace(folder)
    damage_header(folder, schema="moetool.trace/1.7", layers=[{"layer": 0}])
    with pytest.raises(MoetoolError, match="field"):
        open_trace(folder)
    (folder / "trace.json").write_text("{")
    with pytest.raises(MoetoolError, match="cannot be read"):
        open_trace(folder)
    with pytest.raises(MoetoolError, match="not a trace"):
        open_trace(tmp_path)


def test_joined_parts_equal_the_whole(case, tmp_path):
    checkpoint, documents = case
    whole = run(case, None)
    halves = [run((checkpoint, documents[part::2]), None) for part in (0, 1)]
    joined = join_traces(halves)
    assert sorted(d.id for d in joined.documents) == sorted(d.id for d in whole.documents)
    start_of = {(d.domain, d.id): d for d in whole.documents}
    for joined_layer, whole_layer in zip(joined.layers, whole.layers, strict=True):
        for document in joined.documents:
            other = start_of[document.domain, document.id]
            np.testing.assert_array_equal(
                joined_layer.chosen[document.start : document.start + document.tokens],
                whole_layer.chosen[other.start : other.start + other.tokens],
            )
        np.testing.assert_allclose(joined_layer.probability, whole_layer.probability, rtol=1e-5)
    with pytest.raises(MoetoolError, match="in two of the traces"):
        join_traces([whole, whole])


def test_killed_before_the_last_file_was_dropped(case, tmp_path):
    """All layers are there, and so is what only resuming needs: the same command finishes the trace."""
    folder = tmp_path / "trace"
    run(case, folder)
    expected = contents(folder)
    (folder / "hidden-003").mkdir()
    (folder / "hidden-004.partial").mkdir()
    for name in ("hidden-003/batch-000000.safetensors", "layer-000.weight.npy.partial"):
        (folder / name).write_bytes(b"")
    run(case, folder)
    assert contents(folder) == expected


def test_full_disk_while_hidden_states_are_saved(tmp_path):
    """safetensors has an exception of its own for what Python calls an OSError."""
    hidden = HiddenStates(tmp_path, 0, torch.device("cpu"))
    (tmp_path / "hidden-000.partial" / "batch-000000.safetensors").mkdir(parents=True)
    with pytest.raises(MoetoolError, match="cannot be written"):
        _write(tmp_path / "no" / "batch", _Waiting({"input": torch.ones(2)}, 2, 8))
    hidden.close()
    assert tmp_path.is_dir(), "the trace's own folder stays"


def test_traces_of_other_hands(case, tmp_path):
    run(case, tmp_path)
    documents = json.loads((tmp_path / "trace.json").read_text())["documents"]
    for field, value in (("tokens", "3"), ("tokens", -1), ("domain", None), ("id", 7)):
        damage_header(tmp_path, documents=[{**documents[0], field: value}, *documents[1:]])
        with pytest.raises(MoetoolError, match="field"):
            open_trace(tmp_path)
    damage_header(tmp_path, documents=documents)
    np.savez(tmp_path / "archive.npz", chosen=np.zeros(3))
    (tmp_path / "archive.npz").rename(tmp_path / layer_file(0, "chosen"))
    with pytest.raises(MoetoolError, match="cannot be read"):
        open_trace(tmp_path)


def test_damaged_hidden_states_cost_time_only(case, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STATE_COST_SHARE", float("inf"))
    run(case, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "part", progress=Interrupting(after=14))
    ((_, folder),) = saved_layers(tmp_path / "part")
    state = next(folder.iterdir())
    state.write_bytes(state.read_bytes()[:1000])
    resumed = Interrupting()
    run(case, tmp_path / "part", progress=resumed)
    assert any("damaged" in note for note in resumed.notes)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_what_a_killed_save_left_is_removed(case, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "trace", progress=Interrupting(after=5))
    (tmp_path / "trace" / ".tmpkPtH0T").touch()
    run(case, tmp_path / "trace")
    assert not list((tmp_path / "trace").glob(".tmp*"))


@pytest.mark.parametrize(
    "change",
    [
        {"layer": float("inf")},
        {"layer": True},
        {"experts_per_token": 0},
        {"experts_per_token": 99},
        {"zero_experts": -3},
        {"zero_experts": 99},
        {"scoring": ["x"]},
        {"part": 3},
    ],
)
def test_headers_of_other_hands(case, tmp_path, change):
    run(case, tmp_path)
    layers = json.loads((tmp_path / "trace.json").read_text())["layers"]
    damage_header(tmp_path, layers=[{**layers[0], **change}, *layers[1:]])
    with pytest.raises(MoetoolError, match="field"):
        open_trace(tmp_path)
    damage_header(tmp_path, layers=[layers[0], layers[0]])
    with pytest.raises(MoetoolError, match="rise"):
        open_trace(tmp_path)
    damage_header(tmp_path, layers=layers, model=None)
    with pytest.raises(MoetoolError, match="mappings"):
        open_trace(tmp_path)


def test_a_trace_that_is_written_again_keeps_all_that_it_said(case, tmp_path):
    from dataclasses import replace

    from moetool.capture.store import write_trace

    run(case, tmp_path / "first")
    trace = open_trace(tmp_path / "first")
    dropped = np.zeros(trace.layers[0].chosen.shape, dtype=bool)
    layers = (replace(trace.layers[0], zero_experts=2, part="attention", dropped=dropped), *trace.layers[1:])
    write_trace(replace(trace, layers=layers), tmp_path / "second")
    again = open_trace(tmp_path / "second").layers[0]
    assert (again.zero_experts, again.part) == (2, "attention")
    np.testing.assert_array_equal(again.dropped, dropped)


def test_traces_of_different_numerics_are_not_joined(case):
    from dataclasses import replace

    trace = run(case, None)
    for settings in ({"dtype": "bfloat16"}, {"quantize": "4bit"}):
        with pytest.raises(MoetoolError, match=f"different {next(iter(settings))}"):
            join_traces([trace, replace(trace, settings={**trace.settings, **settings})])
