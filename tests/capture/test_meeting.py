"""Where the ranks of one capture meet, and what a process learns from torchrun."""

from __future__ import annotations

import signal
import sys

import pytest
import torch

from moetool import cli
from moetool.capture import ranks
from moetool.capture.ranks import Rank, RankGroup, find_rank, meeting
from moetool.errors import MoetoolError
from moetool.progress import SilentProgress

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29400"}


def test_a_failed_rank_ends_the_others():
    store = torch.distributed.HashStore()
    RankGroup(Rank(1, 2, 1), store).tell_failure()
    with pytest.raises(MoetoolError, match="another rank failed"):
        RankGroup(Rank(0, 2, 0), store).meet("opened", SilentProgress())


def test_ranks_that_never_start(monkeypatch):
    monkeypatch.setattr(ranks, "START_SECONDS", 1.0)
    for name, value in {**TORCHRUN, "MASTER_PORT": "9"}.items():  # where nothing listens
        monkeypatch.setenv(name, value)
    with pytest.raises(MoetoolError, match="rank 1: the other ranks are out of reach"), meeting(find_rank()):
        pass


def test_what_torchrun_says():
    assert find_rank(TORCHRUN) == Rank(1, 2, 1)
    assert find_rank({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}) == Rank(1, 2, 1, 2)
    assert find_rank({**TORCHRUN, "RANK": "0"}).first
    assert find_rank({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None
    for name in TORCHRUN:
        assert find_rank({key: value for key, value in TORCHRUN.items() if key != name}) is None
    assert find_rank({**TORCHRUN, "RANK": "one"}) is None


def test_every_rank_has_a_gpu(monkeypatch):
    group, chosen = RankGroup(Rank(5, 8, 1), torch.distributed.HashStore()), []
    assert group.pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [group.pick_device(wanted) for wanted in ("auto", "cuda", "mps")] == ["auto", "cuda", "mps"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [group.pick_device(wanted) for wanted in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda:1"] * 2 + [
        "cuda:0",
        "cpu",
    ]
    assert chosen == [1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MoetoolError, match="no GPU for local rank 1"):
        group.pick_device("auto")


@pytest.mark.parametrize("arguments", [["route-stats", "demo"], ["specialize", "demo"], ["route-stats", "."]])
def test_only_capture_runs_in_several_processes(monkeypatch, capsys, arguments):
    before = signal.getsignal(signal.SIGTERM)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    for line, sentence in (
        (arguments, "can capture together"),
        (["capture", "demo", "--out", "x", "--shard", "1/2"], "--shard 1/2"),
    ):
        monkeypatch.setattr(sys, "argv", ["moetool", *line])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        assert (caught.value.code, streams.out) == (2, "")
        assert streams.err.startswith("moetool: error: rank 1: ")
        assert sentence in streams.err
    signal.signal(signal.SIGTERM, before)
