"""Naming held-out documents by their routing."""

from __future__ import annotations

import numpy as np
import pytest

from moetool.statistics.classification import classify_groups
from tests.statistics.domains import counts_of, esft_trace, planted_trace, trace_of


def test_classification_by_hand():
    # Two documents per domain; a uses expert 0, b expert 1, but the second of b looks like a.
    chosen = np.array([[0]] * 8 + [[1]] * 4 + [[0]] * 4)
    names = [("a", "a0", 4), ("a", "a1", 4), ("b", "b0", 4), ("b", "b1", 4)]
    result = classify_groups(counts_of(trace_of(names, [chosen], 2)))
    assert result is not None
    # Without the first of each, both domains look the same and the first name wins; without the second of each, a is
    # expert 0 and b expert 1, so b's second document is taken for one of a.
    assert result.predicted.tolist() == [0, 0, 0, 0]
    assert result.domain_accuracy.tolist() == [1, 0]
    assert result.chance == 0.5
    assert result.accuracy == result.domain_accuracy.mean()


def test_a_single_group_cannot_be_held_out():
    assert classify_groups(counts_of(planted_trace(0, documents=1))) is None


def test_published_tasks_are_told_apart():
    result = classify_groups(counts_of(esft_trace()))
    assert result is not None
    assert len(result.correct) == 160
    assert result.accuracy >= 0.99


def test_planted_domains_are_told_apart():
    lifts = {(layer, 4 * k + domain, domain): 2.5 for layer in range(3) for k in range(2) for domain in range(4)}
    result = classify_groups(counts_of(planted_trace(0, lifts=lifts)))
    assert result is not None
    assert result.accuracy >= 0.95


@pytest.mark.parametrize(("domains", "documents"), [(2, 8), (4, 12)])
def test_chance_is_chance(domains, documents):
    """Not below it either, as when a domain is learned from one group less than the others."""
    outcomes = [
        classify_groups(counts_of(planted_trace(seed, domains, documents, tokens=60, layers=4, concentration=20)))
        for seed in range(60)
    ]
    accuracy = [outcome.accuracy for outcome in outcomes if outcome is not None]
    assert np.mean(accuracy) == pytest.approx(1 / domains, abs=0.05)
