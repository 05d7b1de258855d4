"""What the protocol finds where preferences are planted, and how often its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from moetool.progress import SilentProgress
from moetool.statistics.information import domain_information, excess_intervals
from moetool.statistics.intervals import lift_intervals
from moetool.statistics.specialization import analyse, find_specialists
from tests.statistics.domains import counts_of, expected_slot_shares, planted_trace

LIFT = 2.5
PLANTED = {(layer, 4 * k + domain, domain): LIFT for layer in range(3) for k in range(2) for domain in range(4)}
TRUE_SHARES = expected_slot_shares(4, 3, 16, PLANTED).reshape(4, -1)
TRUE_LIFTS = TRUE_SHARES / TRUE_SHARES.mean(axis=0)
CORPORA = 15


@pytest.mark.parametrize(("concentration", "tokens"), [(40, 200), (15, 200), (40, 60)])
def test_planted_preferences_are_found_and_little_else(concentration, tokens):
    hits = found = false = covered = 0
    for seed in range(CORPORA):
        counts = counts_of(planted_trace(seed, tokens=tokens, lifts=PLANTED, concentration=concentration))
        result = find_specialists(counts, 1000, 400, np.random.default_rng(seed))
        truth = TRUE_LIFTS[result.domain, result.cell]
        hits += int(np.isclose(truth, LIFT).sum())
        false += int((truth <= 1 + 1e-9).sum())
        found += len(truth)
        covered += int(((result.low <= truth) & (truth <= result.high)).sum())
    assert hits / (CORPORA * len(PLANTED)) >= 0.9
    assert false / found <= 0.1
    assert 0.9 <= covered / found <= 0.99


def test_lift_intervals_cover_every_cell():
    """Also without selection, and where nothing is planted."""
    domain, cell = np.indices(TRUE_LIFTS.shape).reshape(2, -1)
    covered = []
    for seed in range(CORPORA):
        counts = counts_of(planted_trace(seed, lifts=PLANTED, documents=12))
        low, high = lift_intervals(counts, domain, cell, 400, np.random.default_rng(seed))
        covered.append((low <= TRUE_LIFTS.ravel()) & (TRUE_LIFTS.ravel() <= high))
        assert (high <= 4).all()
    assert 0.9 <= np.mean(covered) <= 0.99


def test_information_intervals_cover_the_truth():
    shares = TRUE_SHARES.reshape(4, 3, 16)
    mean = shares.mean(axis=0)
    truth = (shares * np.log2(shares / mean)).sum(axis=2).mean(axis=0)
    covered, excess = [], []
    for seed in range(2 * CORPORA):
        counts = counts_of(planted_trace(seed, lifts=PLANTED))
        excess.append(domain_information(counts, 200, np.random.default_rng(seed)).excess_bits)
        low, high = excess_intervals(counts, excess[-1], 400, np.random.default_rng(seed))
        covered.append((low <= truth) & (truth <= high))
        assert ((low <= excess[-1]) & (excess[-1] <= high)).all()
    assert 0.88 <= np.mean(covered) <= 1
    assert np.mean(excess) == pytest.approx(truth.mean(), rel=0.06)


def test_planted_domains_through_the_whole_analysis():
    result = analyse(planted_trace(0, lifts=PLANTED), 0, 500, 200, SilentProgress())
    assert result.specialists is not None
    assert result.layers is not None
    assert result.control is not None
    assert result.classification is not None
    assert result.classification.accuracy > 0.95
    assert (result.layers.information.p_value == 1 / 501).all()
    assert result.control.runs == 8
    assert result.control.specialists == 0
    assert abs(result.control.excess_information_bits) < 0.01
    assert result.control.accuracy == pytest.approx(0.5, abs=0.2)
