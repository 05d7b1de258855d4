"""Paths: flows count all pairs, the matched information is that of choices paired at random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.statistics import paths


def choices(random: np.random.Generator, tokens: int, experts: int, per_token: int) -> np.ndarray:
    preference = random.normal(size=experts)
    return np.argsort(random.gumbel(size=(tokens, experts)) + preference, axis=1)[:, -per_token:].astype(np.uint8)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3))
def test_flows_count_every_pair_once(seed: int, per_token: int, following_per_token: int) -> None:
    random = np.random.default_rng(seed)
    first, second = choices(random, 50, 6, per_token), choices(random, 50, 5, following_per_token)
    flows = paths.flow_counts(first, second, 6, 5)
    expected = [
        [sum(i in a and j in b for a, b in zip(first, second, strict=True)) for j in range(5)] for i in range(6)
    ]
    assert flows.tolist() == expected


@pytest.mark.parametrize(("per_token", "following"), [(1, 1), (2, 2), (3, 1)])
def test_the_matched_information_is_the_mean_over_random_pairings(per_token: int, following: int) -> None:
    random = np.random.default_rng(0)
    first, second = choices(random, 4000, 8, per_token), choices(random, 4000, 6, following)
    flows = paths.flow_counts(first, second, 8, 6)
    matched = paths.path_information_matched(flows, 4000, per_token, following)
    shuffled = [
        paths.path_information(paths.flow_counts(first, second[random.permutation(4000)], 8, 6)) for _ in range(200)
    ]
    assert matched == pytest.approx(np.mean([value for value in shuffled if value is not None]), rel=0.05)


def test_a_choice_that_names_the_next_has_all_information() -> None:
    first = np.arange(100)[:, None] % 4
    assert paths.path_information(paths.flow_counts(first, 3 - first, 4, 4)) == pytest.approx(1.0)
    assert paths.path_information(paths.flow_counts(first, first * 0, 4, 2)) is None
    assert paths.path_information(np.zeros((3, 3), np.int64)) is None


def test_all_of_e_chosen_tell_nothing() -> None:
    """K = E: every token chooses all, so nothing is told and nothing is expected."""
    everything = np.tile(np.arange(3, dtype=np.uint8), (20, 1))
    flows = paths.flow_counts(everything, everything, 3, 3)
    assert paths.path_information(flows) == pytest.approx(0.0, abs=1e-12)
    assert paths.path_information_matched(flows, 20, 3, 3) == 0.0


def test_a_collapsed_layer_has_no_information() -> None:
    """Shares that add up to a little more than 1 have no entropy below 0."""
    assert paths.path_information(np.array([[1, 3, 3, 3, 3]])) is None
    assert paths.path_information(np.array([[1], [3], [3], [3], [3]])) is None


def test_too_few_tokens_for_the_expansion() -> None:
    random = np.random.default_rng(0)
    flows = paths.flow_counts(random.integers(0, 64, (100, 1)), random.integers(0, 64, (100, 1)), 64, 64)
    assert paths.path_information_matched(flows, 100, 1, 1) is None
