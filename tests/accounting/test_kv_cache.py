"""Cache and state: published models to the byte, the cache objects of transformers for every family, and laws."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import Cache

from moetool.accounting.kv_cache import PAGE_TOKENS, CacheOptions, cache_bytes, layer_caches, state_bytes, total_cache
from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.types import Checkpoint
from moetool.commands.memory import read_facts
from moetool.model.caches import Mixer, Pool, State
from moetool.model.facts import model_facts
from moetool.model.meta import plan_checkpoint
from moetool.model.presets import preset_checkpoint
from tests.model.test_mixing import CASES, build, plan

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"published configs are not at {CONFIGS}")

# Published models ---------------------------------------------------------------------------------------------------

T = 131_072
DELTA_NET = 32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 3 * 2
"""State of a gated delta net layer of Qwen3-Next: 32 heads of 128 x 128 in float32, bfloat16 convolution."""
CACHES = {
    "mixtral-8x7b": (32 * 2 * 8 * 128 * 2 * T, 0, 16.0),
    "qwen3-30b-a3b": (48 * 2 * 4 * 128 * 2 * T, 0, 12.0),
    "qwen3-235b-a22b": (94 * 2 * 4 * 128 * 2 * T, 0, 23.5),
    "glm-4.5": (92 * 2 * 8 * 128 * 2 * T, 0, 46.0),
    "minimax-m2": (62 * 2 * 8 * 128 * 2 * T, 0, 31.0),
    "gpt-oss-20b": (12 * 2 * 8 * 64 * 2 * (T + 128), 0, 3.0),
    "gpt-oss-120b": (18 * 2 * 8 * 64 * 2 * (T + 128), 0, 4.5),
    "deepseek-v2-lite": (27 * (512 + 64) * 2 * T, 0, 3.80),
    "deepseek-v3": (61 * (512 + 64) * 2 * T, 0, 8.58),
    "kimi-k2": (61 * (512 + 64) * 2 * T, 0, 8.58),
    "deepseek-v3.2": (61 * (512 + 64 + 128) * 2 * T, 0, 10.48),
    "qwen3-next-80b-a3b": (12 * 2 * 2 * 256 * 2 * T, 36 * DELTA_NET, 3.07),
    "qwen3.5-35b-a3b": (10 * 2 * 2 * 256 * 2 * T, 30 * DELTA_NET, 2.56),
    "gemma-4-26b-a4b": (5 * 2 * 2 * 512 * 2 * T + 25 * 2 * 8 * 256 * 2 * 1024, 0, 2.70),
    "nemotron-3-nano": (
        6 * 2 * 2 * 128 * 2 * T,
        23 * (64 * 64 * 128 * 4 + (64 * 64 + 2 * 8 * 128) * 3 * 2),
        0.75 + 47 / 1024,
    ),
    "llama-4-scout": (12 * 2 * 8 * 128 * 2 * T + 36 * 2 * 8 * 128 * 2 * 8192, 0, 7.13),
}
"""Bytes of cache and of state, and both in GiB as ``accounting.md`` gives them."""
HUB_FILES = {
    "mixtral-8x7b": "mistralai__Mixtral-8x7B-v0.1",
    "qwen3-30b-a3b": "Qwen__Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen__Qwen3-235B-A22B",
    "glm-4.5": "zai-org__GLM-4.5",
    "minimax-m2": "MiniMaxAI__MiniMax-M2.5",
    "gpt-oss-20b": "openai__gpt-oss-20b",
    "gpt-oss-120b": "openai__gpt-oss-120b",
    "deepseek-v2-lite": "deepseek-ai__DeepSeek-V2-Lite",
    "deepseek-v3": "deepseek-ai__DeepSeek-V3",
    "kimi-k2": "moonshotai__Kimi-K2-Instruct",
    "deepseek-v3.2": "deepseek-ai__DeepSeek-V3.2",
    "qwen3-next-80b-a3b": "Qwen__Qwen3-Next-80B-A3B",
    "qwen3.5-35b-a3b": "Qwen__Qwen3.5-35B-A3B",
    "gemma-4-26b-a4b": "google__gemma-4-26B-A4B",
    "nemotron-3-nano": "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "llama-4-scout": "meta-llama__Llama-4-Scout-17B-16E-Instruct",
}
OTHER_CACHES = {
    "Qwen__Qwen3-30B-A3B-FP8": 48 * 2 * 4 * 128 * 2 * T,
    "Qwen__Qwen3-8B": 36 * 2 * 8 * 128 * 2 * T,
    "allenai__OLMoE-1B-7B-0125-Instruct": 16 * 2 * 16 * 128 * 2 * T,
    "databricks__dbrx-base": 40 * 2 * 8 * 128 * 2 * T,
    "meta-llama__Llama-4-Maverick-17B-128E-Instruct": 12 * 2 * 8 * 128 * 2 * T + 36 * 2 * 8 * 128 * 2 * 8192,
    "meta-llama__Meta-Llama-3.1-8B": 32 * 2 * 8 * 128 * 2 * T,
    "microsoft__Phi-mini-MoE-instruct": 32 * 2 * 8 * 128 * 2 * 2047,
    "mistralai__Mixtral-8x22B-v0.1": 56 * 2 * 8 * 128 * 2 * T,
    "moonshotai__Kimi-K2.5": 61 * (512 + 64) * 2 * T,
    "tencent__Hunyuan-A13B-Instruct": 32 * 2 * 8 * 128 * 2 * T,
    "zai-org__GLM-4.5-Air": 46 * 2 * 8 * 128 * 2 * T,
}
NOT_IN_TRANSFORMERS = {"deepseek-ai__deepseek-moe-16b-base"}
"""Read from headers only."""


@pytest.mark.parametrize("name", CACHES)
def test_published_models_from_presets(name):
    cache, state, gib = CACHES[name]
    facts = model_facts(preset_checkpoint(name), "config")
    total = total_cache(facts.mixers, CacheOptions(T))
    assert (total.cache_bytes, total.state_bytes) == (cache, state)
    assert (cache + state) / 2**30 == pytest.approx(gib, abs=0.006)


def published_configs():
    skipped = {*NOT_IN_TRANSFORMERS, "golden-counts"}
    return [path for path in sorted(CONFIGS.glob("*.json")) if path.stem not in skipped]


@needs_configs
def test_published_models_from_their_configs():
    expected = {HUB_FILES[name]: (cache, state) for name, (cache, state, _) in CACHES.items()}
    expected |= {name: (cache, 0) for name, cache in OTHER_CACHES.items()}
    files = published_configs()
    assert {path.stem for path in files} == expected.keys()
    for path in files:
        facts = read_facts(str(path))
        total = total_cache(facts.mixers, CacheOptions(T))
        assert (total.cache_bytes, total.state_bytes) == expected[path.stem], path.stem


@needs_configs
def test_raw_configs_have_the_windows_of_completed_ones():
    """Beside headers stands the config as it was published, which no class has completed."""
    for path in published_configs():
        config = json.loads(path.read_text())
        planned = plan_checkpoint(Checkpoint(path.stem, None, config, (), None))
        beside_headers = Checkpoint(path.stem, None, config, planned.tensors, None)
        assert model_facts(beside_headers).mixers == model_facts(planned, "config").mixers, path.stem


# The cache objects of transformers ----------------------------------------------------------------------------------


def held_tensors(value, seen=None, path=""):
    """Every tensor that an object holds, once, with the path to it; scalars are bookkeeping and left out."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.dim():
            yield path, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from held_tensors(item, seen, f"{path}.{key}")
    elif type(value).__module__.startswith("transformers") and hasattr(value, "__dict__"):
        yield from held_tensors(vars(value), seen, path)


def held_bytes(cache):
    """Bytes of caches and of states by layer. Every convolution state has one column more than is needed for the next
    token: transformers keeps ``kernel`` inputs, of which the oldest is never read again."""
    caches, states = {}, {}
    for path, tensor in held_tensors(cache):
        _, where, layer, *rest = path.split(".")
        what = rest[0] if rest else ""
        assert where in ("layers", "linear_cache"), path
        sums = caches if what in ("keys", "values", "indexer_keys", "compressed_kv") else states
        size = tensor.numel() - (tensor.numel() // tensor.shape[-1] if what == "conv_states" else 0)
        sums[int(layer)] = sums.get(int(layer), 0) + size * tensor.element_size()
    return caches, states


def expected_cache(mixers, mixer, pool, tokens, options):
    """Our bytes of a pool, with what transformers does otherwise: before each step its sliding layers keep one token
    less than the window, for the next token is the last one in it. Layers of DeepSeek-V4 without compression keep
    their latent twice, as keys and as values, which are the same."""
    twice = pool.what == "latents" and not any(m.layer == mixer.layer and m.kind == "compressed" for m in mixers)
    if pool.window is not None and tokens >= pool.window:
        pool = Pool(pool.what, pool.elements, pool.terms, pool.every, pool.window - 1, pool.heads)
    return cache_bytes(pool, options) * (2 if twice else 1)


def expected_state(mixer, state, tokens, dtype):
    """Our bytes of a state. transformers keeps the buffers of DeepSeek-V4 at the size that they have at the moment
    (ours is the largest)."""
    if state.what != "buffer":
        return state_bytes(state, dtype)
    width = sum(pool.elements for pool in mixer.pools)
    overlap = state.elements // (2 * mixer.every) > width
    waiting = 2 * (tokens % mixer.every) * width * (2 if overlap else 1)
    before = 2 * mixer.every * width if overlap and tokens >= mixer.every else 0
    assert waiting + before <= state.elements
    return (waiting + before) * BITS[dtype] // 8


def by_layer(rows):
    sums = {}
    for layer, size in rows:
        sums[layer] = sums.get(layer, 0) + size
    return {layer: size for layer, size in sums.items() if size}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_caches_of_transformers(case, batch):
    model = build(case)
    mixers = plan(model.config.to_dict()).mixers
    for tokens in (1, 7, 8, 9, 37):
        options = CacheOptions(tokens, batch, "F32")
        with torch.no_grad():
            cache = model(torch.randint(3, 300, (batch, tokens)), use_cache=True).past_key_values
        assert isinstance(cache, Cache)
        caches, states = held_bytes(cache)
        assert caches == by_layer(
            (m.layer, expected_cache(mixers, m, p, tokens, options)) for m in mixers for p in m.pools
        ), tokens
        assert by_layer(states.items()) == by_layer(
            (m.layer, batch * expected_state(m, s, tokens, "F32")) for m in mixers for s in m.states
        ), tokens


@pytest.mark.parametrize("case", ["mixtral", "deepseek_v3", "deepseek_v32", "gpt_oss", "gemma4_text"])
def test_caches_in_bfloat16(case):
    model = build(case, torch.bfloat16)
    with torch.no_grad():
        caches, _ = held_bytes(model(torch.randint(3, 300, (1, 8)), use_cache=True).past_key_values)
    mixers = plan(model.config.to_dict()).mixers
    assert sum(caches.values()) == total_cache(mixers, CacheOptions(8)).cache_bytes


RECURRENT = [
    "minimax", "jamba", "qwen3_next", "qwen3_5_moe_text", "granitemoehybrid", "nemotron_h", "kimi_linear",
    "bailing_hybrid",
]  # fmt: skip


@pytest.mark.parametrize("case", RECURRENT)
def test_types_of_recurrent_states(case):
    """In bfloat16 all families keep recurrent states in float32, as we count, but for transformers' own MiniMax."""
    model = build(case, torch.bfloat16)
    with torch.no_grad():
        cache = model(torch.randint(3, 300, (1, 9)), use_cache=True).past_key_values
    types = {t.dtype for path, t in held_tensors(cache) if "recurrent_states" in path or "linear_cache" in path}
    assert types == {torch.bfloat16 if case == "minimax" else torch.float32}
    states = [state for mixer in plan(model.config.to_dict()).mixers for state in mixer.states]
    assert {state.dtype for state in states if state.what == "recurrent"} == {"F32"}


def test_a_config_names_the_type_of_states():
    config = build("granitemoehybrid").config.to_dict()
    states = [s for m in plan({**config, "mamba_ssm_cache_dtype": "bfloat16"}).mixers for s in m.states]
    assert {s.dtype for s in states if s.what == "recurrent"} == {"BF16"}


# Policies, types, laws ----------------------------------------------------------------------------------------------

FULL = Mixer(0, "full", (Pool("keys and values", 2 * 3 * 5, "2 x 3 x 5", heads=3),))
SLIDING = Mixer(1, "sliding", (Pool("keys and values", 30, "2 x 3 x 5", window=100, heads=3),), window=100)
FAR = Mixer(2, "compressed", (Pool("compressed latents", 7, "7", 4),), every=4)
STATE = Mixer(3, "mamba", states=(State("recurrent", 11, "F32", "11"), State("convolution", 5, None, "5")))


def test_bytes_and_formulas_by_hand():
    rows = layer_caches([FULL, SLIDING, FAR, STATE], CacheOptions(1001, 3))
    assert [row.cache_bytes for row in rows] == [30 * 2 * 1001 * 3, 30 * 2 * 100 * 3, 7 * 2 * 250 * 3, 0]
    assert [row.state_bytes for row in rows] == [0, 0, 0, 11 * 4 + 5 * 2]
    assert [row.bytes_per_token for row in rows] == [60, 60, 4, 0]  # 14 / 4, rounded up
    assert [row.window_tokens for row in rows] == [None, 100, None, None]
    assert [row.formula for row in rows] == [
        "2 x 3 x 5 x 2 B x context",
        "2 x 3 x 5 x 2 B x min(context, 100)",
        "7 x 2 B x context / 4",
        "11 x 4 B + 5 x 2 B",
    ]
    total = total_cache([FULL, SLIDING, FAR, STATE], CacheOptions(1001, 3))
    assert total.cache_bytes == sum(row.cache_bytes for row in rows)
    assert (total.bytes_per_token, total.growth_bytes, total.state_bytes) == (124, 64, 54 * 3)


def test_reserve_by_hand():
    """Engines with one page size for all layers set whole pages aside, in sliding layers too."""
    options = CacheOptions(1001, 3, policy="reserve")
    rows = layer_caches([FULL, SLIDING, FAR], options)
    assert [row.cache_bytes for row in rows] == [60 * 1008 * 3, 60 * 1008 * 3, 14 * 252 * 3]
    pages = "ceil(context / 16) x 16"
    assert [row.formula.partition(" B x ")[2] for row in rows] == [pages, pages, f"{pages} / 4"]
    assert total_cache([SLIDING], options).growth_bytes == 60


@pytest.mark.parametrize(
    ("dtype", "size"), [("F32", 4), ("BF16", 2), ("F16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("F4", 0.5)]
)
def test_types(dtype, size):
    options = CacheOptions(1001, 1, dtype)
    [row] = layer_caches([FULL], options)
    assert row.cache_bytes == 30 * 1001 * size
    assert row.formula == f"2 x 3 x 5 x {size:g} B x context"
    [state] = layer_caches([STATE], options)
    assert state.state_bytes == 44 + -(-5 * BITS[dtype] // 8)


def test_half_bytes_are_rounded_up_once():
    odd = Mixer(0, "latent", (Pool("latent", 3, "3"),))
    assert total_cache([odd], CacheOptions(1, 1, "F4")).cache_bytes == 2  # 1.5
    assert total_cache([odd], CacheOptions(2, 1, "F4")).cache_bytes == 3
    assert total_cache([odd], CacheOptions(1, 4, "F4")).cache_bytes == 8


POOLS = st.builds(
    Pool, st.just("x"), st.integers(1, 5000), st.just("x"), st.sampled_from([1, 1, 4, 128]),
    st.none() | st.integers(1, 5000), st.none(),
)  # fmt: skip
STATES = st.builds(State, st.just("x"), st.integers(1, 5000), st.sampled_from([None, "F32", "BF16"]), st.just("x"))
MIXERS = st.lists(
    st.builds(Mixer, st.just(0), st.just("full"), st.lists(POOLS).map(tuple), st.lists(STATES).map(tuple)), max_size=4
)
TYPES = st.sampled_from(["F32", "BF16", "F8_E4M3", "I8", "F4"])


@given(MIXERS, st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 64), TYPES)
def test_laws(mixers, context, more, batch, dtype):
    def bytes_of(tokens, sequences=1, policy="exact"):
        return total_cache(mixers, CacheOptions(tokens, sequences, dtype, policy))

    once = bytes_of(context)
    for policy in ("exact", "reserve"):
        assert bytes_of(context, 1, policy).cache_bytes <= bytes_of(context + more, 1, policy).cache_bytes
        assert bytes_of(context, batch, policy).cache_bytes == batch * bytes_of(context, 1, policy).cache_bytes
    assert bytes_of(context, batch).state_bytes == batch * once.state_bytes == batch * bytes_of(0).state_bytes
    assert once.cache_bytes <= bytes_of(context, 1, "reserve").cache_bytes
    pools = [pool for mixer in mixers for pool in mixer.pools]
    # A page at most, and of an entry for several tokens the one that is not complete.
    page = sum(pool.elements * (PAGE_TOKENS + 1) * BITS[dtype] // 8 + 1 for pool in pools)
    if all(pool.window is None for pool in pools):
        assert bytes_of(context, 1, "reserve").cache_bytes <= once.cache_bytes + page
    capped = sum(-(-pool.elements * pool.window * BITS[dtype] // 8) for pool in pools if pool.window)
    if all(pool.window for pool in pools):
        assert once.cache_bytes <= capped
        assert bytes_of(10**9).cache_bytes == capped
    grown = bytes_of(context + 1).cache_bytes - once.cache_bytes
    if dtype != "F4" and all(pool.every == 1 for pool in pools):
        assert grown == once.growth_bytes


@given(st.integers(1, 4096), st.integers(1, 4), st.sampled_from([None, 1, 16, 1000]), st.integers(1, 300))
def test_entries_are_counted_when_they_are_complete(elements, every, window, tokens):
    pool = Pool("x", elements, "x", every, window)
    complete = [token for token in range(1, tokens + 1) if token % every == 0]
    assert pool.entries(tokens) == len(complete if window is None else complete[-window:])
    assert (
        cache_bytes(pool, CacheOptions(tokens, 1, "I8"))
        == pool.entries(tokens) * elements
        == prod((pool.entries(tokens), elements))
    )
