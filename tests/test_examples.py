"""The examples run, at toy size."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_router_collapse(tmp_path, monkeypatch, capfd):
    """The second model is trained and reported by ``main``, the first only trained, which is quicker."""
    example = load("router_collapse")
    corpus = tmp_path / "fiction.jsonl"
    corpus.write_text("\n".join(example.CORPORA[2].read_text().splitlines()[:8]))
    (balanced, coefficient), other = example.RUNS.items()
    monkeypatch.setattr(example, "CORPORA", [corpus])
    monkeypatch.setattr(example, "RUNS", dict([other]))
    monkeypatch.setattr("sys.argv", ["router_collapse.py", "--out", str(tmp_path), "--steps", "3"])
    example.main()
    logs = json.loads((tmp_path / "log.json").read_text())
    logs[balanced] = example.train(tmp_path / "balanced", coefficient, argparse.Namespace(steps=3, seed=0))
    for records in logs.values():
        assert [record["step"] for record in records] == [1, 2, 3]
        assert all(record["router/mean/max_violation"] > 0 for record in records)
    first, second = (logs[name][0]["loss"] for name in (balanced, other[0]))
    assert first - second == pytest.approx(coefficient, abs=0.05), "the balance loss is about 1 before training"
    assert (tmp_path / "router_collapse.png").read_bytes().startswith(b"\x89PNG")
    assert "moetool route-stats:" in capfd.readouterr().out
