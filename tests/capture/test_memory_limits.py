"""Little memory: hidden states in files, and batches that do not fit."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch

from moetool.capture import hidden, stream
from moetool.capture.batches import halves, make_batches, split_like
from moetool.capture.engine import CaptureOptions, capture
from moetool.capture.halving import is_out_of_memory
from moetool.capture.handover import change, flatten, poison, rebuild
from moetool.capture.job import prepare
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from tests import families
from tests.capture.test_engines import assert_same
from tests.capture.test_resume import Interrupting, contents
from tests.checkpoints import save_checkpoint, write_corpus


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    save_checkpoint(folder / "model", "qwen2_moe", mlp_only_layers=[1], num_hidden_layers=4)
    return locate(str(folder / "model")), read_corpus(write_corpus(folder / "corpus"))


def run(case, folder=None, engine="stream", progress=None, **options):
    options = CaptureOptions(engine=engine, device="cpu", **{"batch_tokens": 200, **options})
    return capture(*case, options, folder=folder, progress=progress)


def test_hidden_states_in_files_give_the_same_trace(case, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = run(case)
    read = []
    monkeypatch.setattr(hidden, "_read", lambda path, real=hidden._read: read.append(path) or real(path))
    for limit in (1, 9_000):  # bytes: of no batch, and of one or two
        assert_same(run(case, host_memory_bytes=limit), expected)
    assert len(read) > 20
    assert not list(tmp_path.iterdir()), "temporary files are removed"


def test_hidden_states_of_several_tensors_in_files(tmp_path):
    families.save(tmp_path / "model", "glm_moe_dsa")
    case = locate(str(tmp_path / "model")), read_corpus(write_corpus(tmp_path / "corpus"))
    assert_same(run(case, host_memory_bytes=1), run(case))


def test_files_let_every_layer_resume(case, tmp_path, monkeypatch):
    """In files they are saved as soon as a layer is done, whatever that costs."""
    monkeypatch.setattr(stream, "STATE_COST_SHARE", -1.0)
    run(case, tmp_path / "whole", host_memory_bytes=1)
    expected = contents(tmp_path / "whole")
    batches = len(prepare(*case, CaptureOptions(device="cpu", batch_tokens=200), SilentProgress()).rows)
    for after in range(batches * 4):
        folder = tmp_path / f"part{after}"
        with pytest.raises(KeyboardInterrupt):
            run(case, folder, progress=Interrupting(after + batches), host_memory_bytes=1)
        resumed = Interrupting()
        run(case, folder, progress=resumed, host_memory_bytes=1)
        finished = after // batches
        assert f"resuming at layer {finished}" in resumed.notes
        assert contents(folder) == expected


class SmallMemory:
    """A device on which more than so many sequences at once do not fit."""

    def __init__(self, monkeypatch, rows, error=torch.OutOfMemoryError):
        from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

        real, self.failures = Qwen2MoeSparseMoeBlock.forward, 0

        def forward(module, hidden_states):
            result = real(module, hidden_states)  # the hooks have recorded it: that must not count
            if len(hidden_states) > rows:
                self.failures += 1
                raise error("out of memory: DefaultCPUAllocator: can't allocate memory")
            return result

        monkeypatch.setattr(Qwen2MoeSparseMoeBlock, "forward", forward)


@pytest.mark.parametrize("engine", ["stream", "resident"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_batches_that_do_not_fit_are_halved(case, engine, error, monkeypatch):
    expected = run(case, engine=engine, batch_tokens=1)
    memory = SmallMemory(monkeypatch, 2, error)
    progress = Interrupting()
    trace = run(case, engine=engine, batch_tokens=500, progress=progress)
    for one, other in zip(trace.layers, expected.layers, strict=True):
        np.testing.assert_array_equal(one.chosen, other.chosen)
        np.testing.assert_allclose(one.probability, other.probability, rtol=1e-5)
    assert sum("halved" in note for note in progress.notes) == 1
    assert engine == "resident" or memory.failures <= 4, "halves stay halves in later layers"


@pytest.mark.parametrize("engine", ["stream", "resident"])
def test_a_sequence_that_does_not_fit_is_an_error(case, engine, monkeypatch):
    SmallMemory(monkeypatch, 0)
    with pytest.raises(MoetoolError, match="memory does not suffice"):
        run(case, engine=engine)


def test_resumed_with_halves(case, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STATE_COST_SHARE", float("inf"))
    SmallMemory(monkeypatch, 2)
    run(case, tmp_path / "whole", batch_tokens=500)
    for after in (4, 6, 9):
        folder = tmp_path / f"part{after}"
        with pytest.raises(KeyboardInterrupt):
            run(case, folder, batch_tokens=500, progress=Interrupting(after))
        run(case, folder, batch_tokens=500)
        assert contents(folder) == contents(tmp_path / "whole")


def test_halves_have_the_same_tokens_in_the_same_places(case):
    job = prepare(*case, CaptureOptions(device="cpu"), SilentProgress())
    whole = make_batches(job.corpus, [list(range(len(job.corpus.documents)))], 0)[0]
    parts = [part for half in halves(whole) for part in halves(half)]
    np.testing.assert_array_equal(torch.cat([part.slots for part in parts]), whole.slots)
    for part in parts:
        tokens = part.input_ids.flatten()[part.real]
        np.testing.assert_array_equal(tokens, job.corpus.tokens[part.slots])
        assert part.attention_mask.sum() == len(part.real) == len(part.domain) == len(part.counted)
    again = split_like([whole], [len(part.input_ids) for part in parts])
    for one, other in zip(again, parts, strict=True):
        np.testing.assert_array_equal(one.input_ids, other.input_ids)
        np.testing.assert_array_equal(one.slots, other.slots)


def test_nested_values_come_back_as_they_were():
    value = {"output": (torch.arange(3), None, [torch.ones(2)]), "shared": {"a": (torch.zeros(1),)}}
    tensors = []
    shape = flatten(value, tensors)
    assert shape == {"output": ["tuple", 0, None, ["tuple", 1]], "shared": {"a": ["tuple", 2]}}
    back = rebuild(shape, tensors)
    assert back["output"][0] is value["output"][0]
    assert back["shared"]["a"][0] is value["shared"]["a"][0]
    assert change(value, lambda tensor: tensor + 1)["output"][2][0].tolist() == [2, 2]
    with pytest.raises(MoetoolError, match="hands a set"):
        flatten({1}, [])


def test_poison_cannot_be_used_unnoticed():
    assert poison(torch.zeros(2, 3)).isnan().all()
    assert poison(torch.zeros(2, 3)).untyped_storage().nbytes() == 4
    assert int(poison(torch.zeros(2, dtype=torch.int64))[0]) == 2**63 - 1
    with pytest.raises((IndexError, RuntimeError)):
        torch.zeros(4)[poison(torch.zeros(2, dtype=torch.int64))]


def test_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(MemoryError("can't allocate memory"))


def test_one_layer_at_a_time_where_two_do_not_fit(case, monkeypatch):
    expected = run(case)
    events = []
    from moetool.capture import pipeline
    from moetool.capture.pieces import PieceLoader

    for name in ("load", "release"):
        real = getattr(PieceLoader, name)
        monkeypatch.setattr(
            PieceLoader,
            name,
            lambda self, prefix, *args, name=name, real=real, **kwargs: (
                events.append((name, prefix.rpartition(".")[2])),
                real(self, prefix, *args, **kwargs),
            )[0],
        )
    monkeypatch.setattr(pipeline, "free_memory", lambda device: 1000)
    progress = Interrupting()
    assert_same(run(case, progress=progress), expected)
    layers = [(name, path) for name, path in events if path.isdecimal()]
    assert layers == [(name, str(number)) for number in range(4) for name in ("load", "release")]
    assert sum("one layer only" in note for note in progress.notes) == 1


def test_a_sparse_save_is_kept_until_there_is_a_newer_one(tmp_path, monkeypatch):
    """Where saving is dear it happens every few layers: a kill between two saves goes on from the last."""
    save_checkpoint(tmp_path / "model", "mixtral", num_hidden_layers=8)
    case = locate(str(tmp_path / "model")), read_corpus(write_corpus(tmp_path / "corpus"))
    monkeypatch.setattr(
        stream.Streamer, "_save", lambda self, saved: self.hidden.save() if self.hidden.next_layer == 4 else 0
    )
    run(case, tmp_path / "whole")
    batches = len(prepare(*case, CaptureOptions(device="cpu", batch_tokens=200), SilentProgress()).rows)
    for layer in (4, 5, 7):
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path / f"{layer}", progress=Interrupting(batches * (layer + 1) + 1))
        resumed = Interrupting()
        run(case, tmp_path / f"{layer}", progress=resumed)
        assert "resuming at layer 4" in resumed.notes
        assert contents(tmp_path / f"{layer}") == contents(tmp_path / "whole")


def test_states_of_a_layer_are_kept_until_its_routing_is_written(case, tmp_path, monkeypatch):
    from moetool.capture.store import TraceFolder

    run(case, tmp_path / "whole", host_memory_bytes=1)
    real = TraceFolder.save_layer

    def dying(self, layer):
        if layer.layer == 2:
            raise KeyboardInterrupt
        real(self, layer)

    monkeypatch.setattr(TraceFolder, "save_layer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "part", host_memory_bytes=1)
    monkeypatch.undo()
    resumed = Interrupting()
    run(case, tmp_path / "part", progress=resumed, host_memory_bytes=1)
    assert "resuming at layer 2" in resumed.notes
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_states_with_a_missing_file_are_no_states(case, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STATE_COST_SHARE", float("inf"))
    run(case, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(case, tmp_path / "part", progress=Interrupting(after=14))
    ((_, folder),) = hidden.saved_layers(tmp_path / "part")
    next(folder.iterdir()).unlink()
    progress = Interrupting()
    run(case, tmp_path / "part", progress=progress)
    assert any("damaged" in note for note in progress.notes)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_longrope_never_mixes_lengths_on_both_sides_of_its_boundary(tmp_path):
    """transformers scales rotary frequencies by the longest sequence of a batch: a short one must be read as alone."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
        **factors,
    }
    model = save_checkpoint(
        tmp_path / "model", "mixtral", rope_parameters=rope, original_max_position_embeddings=64, head_dim=8
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(20)  # attention that matters
    model.save_pretrained(tmp_path / "model")
    case = locate(str(tmp_path / "model")), read_corpus(write_corpus(tmp_path / "corpus"))
    together, alone = (run(case, batch_tokens=tokens) for tokens in (4096, 1))
    lengths = [document.tokens for document in together.documents]
    assert min(lengths) < 64 < max(lengths)
    for one, other in zip(together.layers, alone.layers, strict=True):
        np.testing.assert_array_equal(one.chosen, other.chosen)


def test_only_one_capture_at_a_time_writes_into_a_folder(case, tmp_path):
    from moetool.capture.job import make_header
    from moetool.capture.store import TraceFolder

    job = prepare(*case, CaptureOptions(device="cpu", batch_tokens=200), SilentProgress())
    store = TraceFolder(tmp_path / "trace", make_header(job), job.corpus)
    with pytest.raises(MoetoolError, match="another capture is writing"):
        run(case, tmp_path / "trace")
    store.unlock()
    run(case, tmp_path / "trace")
