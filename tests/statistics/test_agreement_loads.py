"""Loads that moved: a worked example, what chance gives at every number of tokens, and shifts that are there."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from moetool.statistics.agreement_loads import FLIPS, LoadShift, excess_shift, load_shift, shift_p_values

Loads = NDArray[np.float64]
EXPERTS, PER_TOKEN = 12, 2


def found(loads: Loads, choices: float, shared: float) -> LoadShift:
    shift = load_shift(loads, choices, shared)
    assert shift is not None
    return shift


def test_worked_example() -> None:
    """Eight groups of ten tokens, K = 1; six of them move a token from expert 0 to 1, two move one back."""
    moved = np.array([1, 1, 1, 1, 1, 1, -1, -1])
    loads = np.full((2, 8, 3), 4.0)
    loads[1] += np.stack([-moved, moved, 0 * moved], axis=1)
    shift = found(loads, 80, 72)
    assert (shift.moved, shift.changed) == pytest.approx((4 / 80, 8 / 80))
    assert shift.statistic.tolist() == pytest.approx([4 / math.sqrt(8), 4 / math.sqrt(8), 0])
    every = [abs(sum(signs)) for signs in product((-1, 1), repeat=8)]
    assert shift.moved_null == pytest.approx(np.mean(every) / 80)
    assert excess_shift([shift]) == pytest.approx((4 - np.mean(every)) / 8)
    p_values = shift_p_values([shift, None])
    assert p_values[0] is not None
    assert p_values[0][:2] == pytest.approx(np.mean([size >= 4 for size in every]))
    assert (p_values[0][2], p_values[1]) == (1, None)


def test_layers_are_added_up_before_they_are_divided() -> None:
    layers = [LoadShift(0.2, 0.5, 0.1, np.zeros(1), np.zeros(1)), LoadShift(0.1, 0.1, 0.05, np.zeros(1), np.zeros(1))]
    assert excess_shift(layers) == pytest.approx(0.15 / 0.6)
    assert excess_shift([*layers, None]) == excess_shift(layers)
    assert math.isnan(excess_shift([None]))


def test_p_values_are_of_all_layers_together() -> None:
    quiet = LoadShift(0, 0, 0, np.array([2.0, 0.5]), np.array([1.0, 1.0, 1.0]))
    loud = LoadShift(0, 0, 0, np.array([4.0]), np.array([3.0, 0.0, 2.0]))
    found = [None if p is None else p.tolist() for p in shift_p_values([quiet, None, loud])]
    assert found == [[3 / 4, 1], None, [1 / 4]]


def test_nothing_changed_is_no_shift() -> None:
    loads = np.full((2, 9, 4), 5.0)
    shift = found(loads, 90, 90)
    assert math.isnan(excess_shift([shift]))
    assert shift_p_values([shift])[0].tolist() == [1] * 4  # type: ignore[union-attr]
    assert load_shift(loads[:, :7], 70, 70) is None
    assert load_shift(loads[:, :0], 0, 0) is None


def two_models(random: np.random.Generator, groups: int, tokens: int, planted: float = 0) -> tuple[Loads, int, float]:
    """Loads and shared choices of two noisy copies of one router; documents have tastes, B likes expert 0 better."""
    taste = np.repeat(random.normal(size=(groups, EXPERTS)), tokens, axis=0)
    scores = taste + random.normal(size=(groups * tokens, EXPERTS))
    chose = []
    for liking in (0.0, planted):
        noisy = scores + 0.05 * random.normal(size=scores.shape)
        noisy[:, 0] += liking
        mark = np.zeros(scores.shape)
        np.put_along_axis(mark, np.argsort(-noisy, axis=1)[:, :PER_TOKEN], 1, axis=1)
        chose.append(mark)
    loads = np.stack([mark.reshape(groups, tokens, EXPERTS).sum(axis=1) for mark in chose])
    return loads, groups * tokens * PER_TOKEN, float((chose[0] * chose[1]).sum())


def test_chance_is_zero_at_every_number_of_tokens() -> None:
    """Without a subtraction the few changes of few tokens read as moved loads."""
    random = np.random.default_rng(0)
    plain, false = [], 0
    for groups, tokens in ((8, 12), (8, 60), (24, 60)):
        shifts = [found(*two_models(random, groups, tokens)) for _ in range(100)]
        plain.append(np.mean([shift.moved / shift.changed for shift in shifts]))
        assert np.mean([excess_shift([shift]) for shift in shifts]) == pytest.approx(0, abs=0.05), (groups, tokens)
        false += sum(bool((shift_p_values([shift])[0] < 0.05).any()) for shift in shifts)  # type: ignore[operator]
    assert plain[0] > 0.5 > 0.25 > plain[2]
    assert false / 300 < 0.08


def test_a_shift_that_is_there_is_found_among_all_experts() -> None:
    random = np.random.default_rng(1)
    hits, others, excess = 0, 0, []
    for _ in range(20):
        layers = [found(*two_models(random, 24, 60, planted)) for planted in (0.15, 0, 0)]
        p_values = np.stack([p for p in shift_p_values(layers) if p is not None])
        hits += p_values[0, 0] < 0.05
        others += (p_values[1:] < 0.05).any()
        excess.append(excess_shift(layers[:1]))
    assert hits >= 19
    assert others <= 3
    assert np.mean(excess) > 0.12
    assert p_values.min() >= 1 / (1 + FLIPS)


def test_one_sign_in_all_groups_counts_as_groups_do() -> None:
    """What every group shares is in the null too: sqrt(2 / (pi G)) of it."""
    loads = np.full((2, 50, 2), 9.0)
    loads[1] += [1, -1]
    shift = found(loads, 900, 850)
    assert shift.moved == pytest.approx(shift.changed)
    assert excess_shift([shift]) == pytest.approx(1 - math.sqrt(2 / (math.pi * 50)), abs=0.01)


def test_tosses_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, choices, shared = two_models(np.random.default_rng(2), 30, 20)
    whole = found(loads, choices, shared)
    assert len(whole.largest_null) == FLIPS
    monkeypatch.setattr("moetool.statistics.significance.CHUNK_ELEMENTS", 30 * 100)
    parts = found(loads, choices, shared)
    assert parts.largest_null.tolist() == whole.largest_null.tolist()
    assert parts.moved_null == pytest.approx(whole.moved_null)
