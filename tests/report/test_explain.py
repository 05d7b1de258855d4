import pytest

from moetool.errors import MoetoolError
from moetool.report.explain import explain
from moetool.statistics.registry import LAYER_STATISTICS
from tests.report.command_reports import REPORTS


def test_a_statistic_of_layers():
    lines = explain("route-stats", "max_violation").splitlines()
    assert lines[0].startswith("summary.max_violation (ratio): Of the worst layer: busiest load")
    assert lines[2].startswith("layers.max_violation (ratio): Busiest expert's load over the mean load, minus 1")
    text = " ".join(line.strip() for line in lines)
    assert "definition: max n / mean n - 1, in [0, E/K - 1] (loss-free balancing, arXiv 2408.15664)." in text
    assert "baseline: 0 attainable range: 0 to 7 (64 experts, 8 per token;" in text
    assert lines[-1] == "worst: the highest value"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("key", "baseline", "limits"),
    [
        ("layers.entropy", "1", "0.5 to 1"),
        ("mean_first_repeat", "first_repeat_matched", "0 to 1"),
        ("worst_autocorrelation", "0", "without end to 1"),
        ("design_effect", "1", "1 to without end"),
        ("top1_probability", "0.01562", "0.01562 to 1"),
    ],
)
def test_baselines_and_ranges_by_hand(key, baseline, limits):
    text = explain("route-stats", key)
    assert f"baseline: {baseline}\nattainable range: {limits} (" in text


@pytest.mark.parametrize("key", [statistic.key for statistic in LAYER_STATISTICS])
def test_every_statistic_can_be_explained(key):
    assert f"layers.{key} (" in explain("route-stats", key)


@pytest.mark.parametrize("command", REPORTS)
def test_every_key_of_every_command_can_be_explained(command):
    for report in REPORTS[command]():
        places = [("summary", column) for column in report.summary_columns]
        places += [(table.key, column) for table in report.tables for column in table.columns]
        for part, column in places:
            assert f"{part}.{column.key} (" in explain(command, column.key)
            assert explain(command, f"{part}.{column.key}").startswith(f"{part}.{column.key} (")


def test_a_column_of_unlike_quantities():
    assert explain("memory", "compare.this").startswith("compare.this (unit in the column unit): ")


def test_unknown_keys():
    with pytest.raises(MoetoolError, match="a report of moetool memory has no such key") as caught:
        explain("memory", "total_byte")
    assert caught.value.hint.startswith("did you mean total_bytes or ")
    with pytest.raises(MoetoolError) as caught:
        explain("models", "xyzzy")
    assert caught.value.hint.startswith("it has presets, families, ")
