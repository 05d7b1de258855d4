"""Several processes that capture one trace, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moetool.capture import ranks
from moetool.capture.engine import CaptureOptions
from moetool.capture.ranks import Rank, RankGroup
from moetool.capture.store import TraceFolder
from moetool.capture.together import capture_together
from moetool.checkpoint.locate import locate
from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress
from tests.checkpoints import save_checkpoint, write_corpus

ROOT = Path(__file__).parents[2]
DRIVER = """
import os, signal, sys, time
from moetool.capture.store import TraceFolder
from moetool.cli import main
from moetool.errors import MoetoolError

save_layer = TraceFolder.save_layer

def fail(store, layer):
    save_layer(store, layer)
    if layer.layer == 2 and os.environ["RANK"] == "1" and store.folder.name == "rank-1-of-2":
        {failure}

TraceFolder.save_layer = fail
main()
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The arguments of a capture, and the files of the trace that a single process makes of it."""
    folder = tmp_path_factory.mktemp("ranks")
    save_checkpoint(folder / "model", "qwen2_moe", num_hidden_layers=4)
    texts = [part for argument in write_corpus(folder / "corpus") for part in ("--text", argument)]
    arguments = [
        "capture",
        str(folder / "model"),
        *texts,
        "--batch-tokens",
        "200",
        "--device",
        "cpu",
        "--format",
        "json",
    ]
    result = run([sys.executable, "-m", "moetool", *arguments, "--out", str(folder / "one")])
    assert result.returncode == 0, result.stderr
    return arguments, contents(folder / "one")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(command):
    """A command with one thread per process, as torchrun would choose."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment = {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def torchrun(*program):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return run([*command, *map(str, program)])


def check_refusals(result, *sentences):
    """No report, no traceback of ours, and what happened."""
    assert result.returncode != 0
    assert result.stdout == ""
    assert f'File "{ROOT / "moetool"}' not in result.stderr
    for sentence in sentences:
        assert sentence in result.stderr


def test_torchrun_makes_the_trace_of_one_process(case, tmp_path):
    arguments, expected = case
    result = torchrun("-m", "moetool", *arguments, "--out", tmp_path / "trace")
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "trace") == expected
    assert result.stdout.count('"schema"') == 1, "the first rank reports alone"
    assert result.stderr.count("2 processes share the batches") == 1


def test_finished_traces_are_refused(case, tmp_path):
    arguments, expected = case
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    result = torchrun("-m", "moetool", *arguments, "--out", tmp_path)
    check_refusals(result, f"moetool: error: rank 0: {tmp_path} already holds this trace, finished", "--overwrite")
    assert contents(tmp_path) == expected


@pytest.mark.parametrize(
    ("failure", "sentences"),
    [
        ("raise MoetoolError('no more')", ("moetool: error: rank 1: no more", "exitcode  : 2")),
        ("os.kill(os.getpid(), signal.SIGKILL)", ("Signal 9 (SIGKILL)",)),
        ("os.kill(os.getppid(), signal.SIGKILL), os.kill(os.getpid(), signal.SIGKILL)", ("moetool: error: rank 0: ",)),
    ],
    ids=["error", "killed", "all killed"],
)
def test_one_rank_fails_and_the_same_command_resumes(case, tmp_path, failure, sentences):
    arguments, expected = case
    (tmp_path / "driver.py").write_text(DRIVER.format(failure=failure))
    out = tmp_path / "trace"
    check_refusals(torchrun(tmp_path / "driver.py", *arguments, "--out", out), *sentences)
    assert (out / "rank-1-of-2" / "layer-000.chosen.npy").exists()
    result = torchrun("-m", "moetool", *arguments, "--out", out)
    assert result.returncode == 0, result.stderr
    assert contents(out) == expected


class Recording(SilentProgress):
    """Remembers what it is told."""

    def __init__(self):
        self.titles, self.notes = [], []

    def step(self, title, total=None):
        self.titles.append(title)
        return super().step(title, total)

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def one_rank(case, monkeypatch):
    """Run one of two ranks in this process, as if the other had passed all points where they meet."""
    monkeypatch.setattr(ranks, "SIGHT_SECONDS", 0.0)
    arguments, _ = case
    checkpoint = locate(arguments[1])
    documents = read_corpus([argument for argument in arguments if "=" in argument])

    def run_rank(index, folder, overwrite=False, **options):
        store, progress = torch.distributed.HashStore(), Recording()
        for point in ("opened", "captured", "joined"):
            store.add(point, 1)
        settings = CaptureOptions(device="cpu", batch_tokens=200, **options)
        group = RankGroup(Rank(index, 2, index), store)
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            capture_together(
                checkpoint, documents, settings, group, folder=folder, overwrite=overwrite, progress=progress
            )
        finally:
            torch.set_num_threads(torch_threads)
        return progress

    return run_rank


def test_machines_without_a_common_folder(one_rank, case, tmp_path):
    _, expected = case
    with pytest.raises(MoetoolError, match=r"trace\.json, which another rank wrote, is not there") as caught:
        one_rank(1, tmp_path / "other")
    assert "--shard 1/2" in caught.value.hint
    assert not (tmp_path / "other").exists()
    with pytest.raises(MoetoolError, match=r"rank-1-of-2.* must share a file system"):
        one_rank(0, tmp_path / "trace")
    assert "layer 0" in one_rank(1, tmp_path / "trace").titles  # as if its folder had been copied here
    last = one_rank(0, tmp_path / "trace")
    assert "layer 0" not in last.titles, "finished layers are not computed again"
    assert contents(tmp_path / "trace") == expected
    with pytest.raises(MoetoolError, match="finished"):
        one_rank(0, tmp_path / "trace")


def both_shards(one_rank, folder, **options):
    """A folder in which both ranks have captured and nothing is joined yet."""
    with pytest.raises(MoetoolError, match="share a file system"):
        one_rank(0, folder, **options)
    one_rank(1, folder, **options)


def test_killed_while_joining(one_rank, case, tmp_path, monkeypatch):
    _, expected = case
    both_shards(one_rank, tmp_path)
    save_array = TraceFolder._save_array

    def fail(store, name, array):
        if (store.folder, name) == (tmp_path, "layer-002.chosen.npy"):
            raise KeyboardInterrupt
        save_array(store, name, array)

    monkeypatch.setattr(TraceFolder, "_save_array", fail)
    with pytest.raises(KeyboardInterrupt):
        one_rank(0, tmp_path)
    assert (tmp_path / "layer-000.chosen.npy").exists()
    monkeypatch.setattr(TraceFolder, "_save_array", save_array)
    one_rank(0, tmp_path)
    assert contents(tmp_path) == expected


def test_killed_while_shards_are_removed(one_rank, case, tmp_path):
    _, expected = case
    for name, data in expected.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "rank-1-of-2").mkdir()
    (tmp_path / "rank-1-of-2" / "tokens.npy").write_bytes(b"")
    assert "layer 0" not in one_rank(0, tmp_path).titles
    assert contents(tmp_path) == expected


def test_other_contents_of_the_folder(one_rank, case, tmp_path):
    both_shards(one_rank, tmp_path / "seed", seed=1)
    for index in (0, 1):
        with pytest.raises(MoetoolError, match="other settings"):
            one_rank(index, tmp_path / "seed")
    both_shards(one_rank, tmp_path / "again", seed=1)
    with pytest.raises(MoetoolError, match="share a file system"):
        one_rank(0, tmp_path / "again", overwrite=True)  # which removes the shards of both
    one_rank(1, tmp_path / "again")
    one_rank(0, tmp_path / "again")
    assert contents(tmp_path / "again") == case[1]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(MoetoolError, match="not empty"):
        one_rank(0, tmp_path / "photos")


def test_another_number_of_processes_begins_anew(one_rank, case, tmp_path):
    (tmp_path / "rank-2-of-3").mkdir()
    (tmp_path / "rank-2-of-3" / "layer-000.chosen.npy").touch()
    both_shards(one_rank, tmp_path)
    progress = one_rank(0, tmp_path)
    assert any("rank-2-of-3: left by an interrupted run" in note for note in progress.notes)
    assert contents(tmp_path) == case[1]


def test_one_process_finishes_what_several_began(one_rank, case, tmp_path):
    arguments, expected = case
    both_shards(one_rank, tmp_path)
    result = run([sys.executable, "-m", "moetool", *arguments, "--out", str(tmp_path)])
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path) == expected
