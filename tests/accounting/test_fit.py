"""Fitting: sizes as people write them, and searches whose answer fits while the next one does not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.accounting.fit import GPU_BYTES, default_reserve, fit, parse_memory, similar_splits
from moetool.accounting.kv_cache import CacheOptions
from moetool.accounting.parallel import plan_devices
from moetool.accounting.split import Split
from moetool.errors import MoetoolError
from moetool.model.caches import Mixer, State
from tests.accounting.test_parallel import SMALL_DEEPSEEK, SMALL_MIXTRAL

# Small Mixtral on one GPU: weights 2832, and 32 for each cached token.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GiB", 80 * 2**30),
        ("80 GB", 80 * 10**9),
        (" 80gb ", 80 * 10**9),
        ("80e9", 80 * 10**9),
        ("0.5 TiB", 2**39),
        ("1.5e3MiB", 1500 * 2**20),
        ("h100-80gb", 81559 * 2**20),
        ("H200-141GB", 143771 * 2**20),
    ],
)
def test_memory_as_people_write_it(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "80", "0GiB", "-80GiB", "80 Gbit", "nan", "inf", "1e99", "9e99999999", "²GiB", "h100", "8 0GiB", "2e15B"],
)
def test_no_memory(text):
    with pytest.raises(MoetoolError) as error:
        parse_memory(text)
    assert repr(text) in error.value.message
    assert "80GiB" in error.value.hint


def test_named_memory_is_about_what_the_name_says():
    for name, size in GPU_BYTES.items():
        named = int(name.rpartition("-")[2].removesuffix("gb"))
        assert 0.93 * named * 2**30 < size < 1.08 * named * 2**30
        assert parse_memory(name) == size
        assert default_reserve(size) == -(-size // 10)


def test_one_gpu_by_hand():
    result = fit(SMALL_MIXTRAL, Split(1), CacheOptions(10, batch=2), 3500, 20)
    assert result.fits
    assert result.free_bytes == 3480 - 2832 - 640
    assert result.largest_context == 10
    assert result.largest_batch == 2
    assert result.fewest == Split(1)


def test_too_small():
    result = fit(SMALL_MIXTRAL, Split(1), CacheOptions(10), 2000, 0)
    assert (result.fits, result.free_bytes) == (False, 2000 - 2832 - 320)
    assert (result.largest_context, result.largest_batch) == (0, 0)
    assert result.fewest == Split(2, tp=2)  # 1968 bytes: see test_parallel
    assert fit(SMALL_MIXTRAL, Split(1), CacheOptions(10), 900, 0).fewest is None


def test_no_limit_where_the_state_does_not_grow():
    facts = replace(SMALL_MIXTRAL, mixers=(Mixer(0, "mamba", states=(State("recurrent", 4, "F32", ""),)),))
    result = fit(facts, Split(1), CacheOptions(10), 2832 + 16 * 5, 0)
    assert (result.largest_context, result.largest_batch) == (None, 5)
    assert fit(replace(facts, mixers=()), Split(1), CacheOptions(10), 2832, 0).largest_batch is None


def test_the_fullest_rank_decides():
    result = fit(SMALL_MIXTRAL, Split(2, pp=2), CacheOptions(10), 1600, 0)
    assert (result.fullest.rank, result.fullest.total_bytes) == (1, 768 + 656 + 160)
    assert result.free_bytes == 16


def test_a_reserve_that_leaves_nothing():
    with pytest.raises(MoetoolError, match="leaves nothing"):
        fit(SMALL_MIXTRAL, Split(1), CacheOptions(10), 100, 100)


def test_similar_splits():
    facts = replace(SMALL_MIXTRAL, heads=12)
    shapes = [(split.tp, split.pp) for split in similar_splits(facts, Split(1))]
    assert shapes == [(1, 1), (2, 1), (1, 2), (3, 1), (4, 1), (2, 2), (6, 1), (3, 2), (4, 2), (6, 2)]
    assert list(similar_splits(facts, Split(4, tp=2, dp=2)))[1] == Split(4, tp=2, dp=2)
    assert list(similar_splits(facts, Split(2, tp=2, ep=2)))[:2] == [Split(1), Split(2, tp=2, ep=2)]
    assert list(similar_splits(facts, Split(2, dp=2, ep=2, redundant_experts=1))) == [
        Split(1), *(Split(n, dp=n, ep=n, redundant_experts=1) for n in range(2, 6)),
    ]  # fmt: skip


def test_a_split_that_no_search_tries_counts_where_it_fits():
    groups = tuple(group for group in SMALL_MIXTRAL.groups if group.layer != 1)
    first = {"moe_layers": SMALL_MIXTRAL.moe_layers[:1], "mixers": SMALL_MIXTRAL.mixers[:1]}
    facts = replace(SMALL_MIXTRAL, groups=groups, heads=16, **first)
    held = (2 * 160 + 256 + 768) // 16 + 128 + 16 + 32 + 64 + 16
    assert fit(facts, Split(16, tp=16), CacheOptions(1), held, 0).fewest == Split(16, tp=16)
    assert fit(facts, Split(16, tp=16), CacheOptions(1), held - 1, 0).fewest is None


@given(
    st.sampled_from([SMALL_MIXTRAL, SMALL_DEEPSEEK]),
    st.sampled_from([Split(1), Split(2, tp=2), Split(2, pp=2), Split(2, dp=2, ep=2), Split(2, tp=2, ep=2)]),
    st.integers(1, 50),
    st.integers(1, 5),
    st.integers(500, 20_000),
    st.sampled_from(["exact", "reserve"]),
)
def test_the_largest_fits_and_the_next_does_not(facts, split, context, batch, usable, policy):
    cache = CacheOptions(context, batch, policy=policy)

    def fits(cache, split=split):
        return all(row.total_bytes <= usable for row in plan_devices(facts, split, cache))

    result = fit(facts, split, cache, usable + 7, 7)
    assert result.fits == fits(cache) == (result.free_bytes >= 0)
    for key, largest in {"context_tokens": result.largest_context, "batch": result.largest_batch}.items():
        assert largest is not None
        assert largest == 0 or fits(replace(cache, **{key: largest}))
        assert not fits(replace(cache, **{key: largest + 1}))
    assert result.fits == (batch <= result.largest_batch) == (context <= result.largest_context)
    if result.fewest is None:
        assert not result.fits
    else:
        assert fits(cache, result.fewest)
        assert not result.fits or result.fewest.gpus <= split.gpus


@pytest.mark.parametrize("memory", [700, 1000, 1500, 2000, 2900, 3500])
def test_the_fewest_are_the_fewest_of_all(memory):
    cache = CacheOptions(10)
    every = [Split(tp * pp, tp=tp, pp=pp) for tp in (1, 2) for pp in (1, 2)]
    fitting = [
        split.gpus
        for split in every
        if all(row.total_bytes <= memory for row in plan_devices(SMALL_MIXTRAL, split, cache))
    ]
    found = fit(SMALL_MIXTRAL, Split(1), cache, memory, 0).fewest
    assert (found and found.gpus) == min(fitting, default=None)
