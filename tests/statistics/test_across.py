"""Over layers: worst ends, and intervals that hold what other documents of the same kind would give."""

import numpy as np
import pytest

from moetool.statistics import across, load


def test_the_worst_layer_is_the_first_of_equals() -> None:
    found = across.spread([3, 5, 9], [1.0, 4.0, 4.0], "high")
    assert found is not None
    assert (found.mean, found.worst, found.best, found.worst_layer) == (3.0, 4.0, 1.0, 5)
    assert found.percentiles == (4.0, 4.0, 4.0, 4.0)
    low = across.spread([3, 5, 9], [None, 4.0, 2], "low")
    assert low is not None
    assert (low.mean, low.worst, low.worst_layer) == (3.0, 2.0, 9)
    assert across.spread([1], [None], "high") is None


def test_intervals_need_groups_in_every_domain() -> None:
    assert across.has_intervals(np.array([0] * 4 + [1] * 4, np.int32))
    assert not across.has_intervals(np.array([0] * 7, np.int32))
    assert not across.has_intervals(np.array([0] * 8 + [1], np.int32))


def test_an_undefined_replicate_gives_no_interval() -> None:
    assert across.interval(1.0, np.array([1.0, np.nan]), 9, (0, 2)) is None
    assert across.interval(0.5, np.array([0.9, 0.9]), 9, (0.2, 2)) == (0.2, 0.5)  # 2 v - 0.9 is 0.1, below the least


def test_where_there_is_nothing_the_interval_reaches_zero() -> None:
    """Independent uniform choices: the true coefficient of variation is 0, all that is seen is noise."""
    random = np.random.default_rng(0)
    reached = 0
    for _ in range(50):
        counts = random.multinomial(200, np.full(16, 1 / 16), 40)
        drawn = random.multinomial(40, np.full(40, 1 / 40), 400) @ counts
        value = load.cv(counts.sum(axis=0))
        ends = across.interval(value, np.array([load.cv(row) for row in drawn]), 40, (0, 10), quadratic=True)
        reached += ends[0] < 0.2 * value
        assert ends[0] <= value <= ends[1]
    assert reached > 45


@pytest.mark.parametrize("function", [load.max_violation, load.gini, load.load_entropy])
def test_intervals_hold_the_truth_about_as_often_as_they_say(function) -> None:
    """Dirichlet documents, whose expected load is known: biased statistics are corrected, coverage is near 95 %."""
    random = np.random.default_rng(0)
    share = np.array([4, 3, 3, 2, 2, 2, 1, 1.0])
    share /= share.sum()
    truth = function(share * 1e9)
    held = 0
    for _ in range(200):
        counts = np.array([random.multinomial(200, random.dirichlet(share * 30)) for _ in range(40)])
        drawn = random.multinomial(40, np.full(40, 1 / 40), 400) @ counts
        replicates = np.array([function(row) for row in drawn])
        ends = across.interval(function(counts.sum(axis=0)), replicates, 40, (0, 10), function is not load.load_entropy)
        assert ends is not None
        held += ends[0] <= truth <= ends[1]
    assert 0.9 <= held / 200 <= 1.0
