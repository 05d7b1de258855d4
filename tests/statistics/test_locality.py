"""First choices, expert sets and the published baselines of repeats."""

import numpy as np
import pytest

from moetool.statistics import locality


@pytest.mark.parametrize(("experts", "k", "percent"), [(8, 2, 46.4), (64, 6, 46.0), (64, 8, 67.9), (128, 8, 41.2)])
def test_any_repeat_uniform(experts: int, k: int, percent: float) -> None:
    assert round(100 * locality.any_repeat_uniform(experts, k), 1) == percent


def test_first_choice_is_the_largest_weight_and_not_the_stored_order() -> None:
    chosen = np.array([[3, 1], [2, 0]], np.uint8)
    assert locality.first_choice(chosen, np.array([[0.2, 0.8], [0.5, 0.5]], np.float16)).tolist() == [1, 0]
    assert locality.first_choice(chosen, None).tolist() == [3, 2]


@pytest.mark.parametrize("experts", [3, 64, 65, 400])
def test_sets_hold_every_expert_once(experts: int) -> None:
    random = np.random.default_rng(0)
    chosen = random.random((40_000 // experts, experts)).argsort(axis=1)[:, :3].astype(np.uint16)
    sets = locality.expert_sets(chosen, experts)
    assert sets.shape == (-(-experts // 64), len(chosen))
    for token in (0, len(chosen) - 1):
        number = int.from_bytes(sets[:, token].tobytes(), "little")
        assert {expert for expert in range(experts) if number >> expert & 1} == set(chosen[token].tolist())


def test_a_long_trace_is_sampled_and_agrees_with_the_analytic_value() -> None:
    """Independent uniform choices, so that the matched baseline must be the uniform one."""
    random = np.random.default_rng(0)
    chosen = random.random((30_000, 16)).argsort(axis=1)[:, :2].astype(np.uint8)
    sets = locality.expert_sets(chosen, 16)
    matched = locality.any_repeat_matched(sets, random.permutation(sets.shape[1]))
    assert matched == pytest.approx(locality.any_repeat_uniform(16, 2), abs=0.003)
