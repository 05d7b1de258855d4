"""Tokens per expert in the files of other tools."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from moetool.commands.export import check_exports, expert_counts, write_exports
from moetool.commands.route_stats import build_report
from moetool.errors import MoetoolError
from tests.statistics.traces import make_trace


@pytest.fixture(scope="module")
def report():
    """Layers 1 and 3 of a model whose layers 0 and 2 are dense; K = 2, six tokens, one of them special."""
    trace = make_trace([[[0, 1]] * 5 + [[2, 3]], [[1, 2]] * 5 + [[2, 3]]], 4, special=[5])
    layers = tuple(replace(layer, layer=number) for layer, number in zip(trace.layers, (1, 3), strict=True))
    return build_report(replace(trace, layers=layers), {})


def test_csv_and_parquet_have_a_row_per_expert(report, tmp_path):
    write_exports(report, [tmp_path / "counts.csv", tmp_path / "counts.parquet"])
    lines = (tmp_path / "counts.csv").read_text().splitlines()
    assert lines[:4] == ["layer,expert,count", "1,0,5", "1,1,5", "1,2,0"]
    assert len(lines) == 9
    frame = pd.read_parquet(tmp_path / "counts.parquet")
    pd.testing.assert_frame_equal(frame, pd.read_csv(tmp_path / "counts.csv"))
    pd.testing.assert_frame_equal(frame, expert_counts(report), check_dtype=False)


def test_json_has_a_row_per_decoder_layer(report, tmp_path):
    write_exports(report, [tmp_path / "counts.json"])
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts == {"logical_count": [[0] * 4, [5, 5, 0, 0], [0] * 4, [0, 5, 5, 0]]}


@pytest.mark.parametrize(
    ("name", "message"), [("counts.txt", "no export is known for .txt"), ("missing/counts.csv", "there is no folder")]
)
def test_wrong_targets_are_refused_before_the_run(name, message, tmp_path):
    with pytest.raises(MoetoolError, match=message):
        check_exports([tmp_path / name])
    assert not list(tmp_path.iterdir())
