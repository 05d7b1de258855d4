"""Standardised comparisons: worked by hand, covered intervals, and pairs of texts."""

import numpy as np
import pytest

from moetool.statistics.strata import adjusted_lifts, compare_at_strata, paired_ratio


def worked():
    """K = 1, E = 2; own: 2 groups of 8 tokens of stratum 0 and 8 of stratum 1; others: 24 and 8 in each of 2 groups.

    Stratum 0 always chooses expert 0, stratum 1 chooses expert 1: there is no preference within strata.
    """
    stratum = np.array(([0] * 8 + [1] * 8) * 2 + ([0] * 24 + [1] * 8) * 2)
    group = np.array([0] * 16 + [1] * 16 + [2] * 32 + [3] * 32)
    own = group < 2
    return stratum, group, own, stratum[:, None].astype(np.uint8)


def test_a_mixture_of_strata_alone_gives_no_adjusted_lift():
    stratum, group, own, chosen = worked()
    comparison = compare_at_strata(stratum, group, own, 2)
    assert comparison is not None
    assert comparison.coverage == 1.0
    # Shares of the strata are 1/2, 1/2 and 3/4, 1/4; the smaller ones, 1/2 and 1/4, make a standard of 2/3 and 1/3.
    np.testing.assert_allclose(comparison.own.mixture.sum(axis=0), [2 / 3, 1 / 3], rtol=1e-6)
    found = adjusted_lifts(comparison, chosen, 2)
    np.testing.assert_allclose(found.lift, [1.0, 1.0])
    np.testing.assert_allclose(found.low, [1.0, 1.0], rtol=1e-5)


def test_strata_of_one_side_or_of_one_group_do_not_count():
    stratum, group, own, _ = worked()
    foreign = np.where(own & (stratum == 0), 2, stratum)
    comparison = compare_at_strata(foreign, group, own, 2)
    assert comparison is not None
    assert comparison.coverage == 0.5
    lonely = np.where((group == 1) & (stratum == 0), 2, stratum)  # stratum 0 is left in one group of the own side
    assert compare_at_strata(lonely, group, own, 2).coverage == 0.5
    assert compare_at_strata(np.where(own, 0, 1), group, own, 2) is None


def test_a_ratio_within_strata_is_the_lift_of_unadjusted_shares():
    """One stratum: own share 3/4, others 1/4; r = 3 and the lift of two domains is 2 r / (r + 1)."""
    group = np.repeat(np.arange(4), 16)
    chosen = np.tile(np.array([[0]] * 12 + [[1]] * 4), (4, 1))
    chosen[32:] = 1 - chosen[32:]
    found = adjusted_lifts(compare_at_strata(np.zeros(64, int), group, group < 2, 2), chosen.astype(np.uint8), 2)
    assert found.lift[0] == pytest.approx(2 * 3 / 4, rel=1e-3)


def test_intervals_cover_a_preference_within_strata():
    """Documents with tastes of their own; strata choose differently and are mixed differently; r is 2 within both."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(150):
        groups, tokens = 24, 150
        own_group = np.arange(groups) < groups // 2
        group = np.repeat(np.arange(groups), tokens)
        own = own_group[group]
        stratum = (random.random(len(group)) < np.where(own, 0.7, 0.3)).astype(int)
        taste = np.exp(random.normal(0, 0.3, groups) - 0.045)[group]
        share = np.where(stratum == 1, 0.2, 0.05) * np.where(own, 2, 1) * taste
        chosen = (random.random(len(group)) >= share).astype(np.uint8)[:, None]
        found = adjusted_lifts(compare_at_strata(stratum, group, own, 2), chosen, 2)
        held += found.low[0] <= 4 / 3 <= found.high[0]
    assert 0.88 <= held / 150 <= 0.99


def test_pairs_of_texts():
    """Shares 0.2 and 0.4 in every pair: the ratio is 1/2, surely."""
    ratio, low, high = paired_ratio(np.full(9, 0.2), np.full(9, 0.4), np.ones(9))
    assert ratio == pytest.approx(0.5, rel=1e-3)
    assert low == pytest.approx(high, rel=1e-3)
    _, low, high = paired_ratio(np.array([0.1, 0.3] * 5), np.array([0.3, 0.1] * 5), np.ones(10))
    assert low < 1 < high
