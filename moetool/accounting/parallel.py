"""What each GPU holds: enters ModelFacts, a Split and the options of the cache, leaves one DeviceLoad per rank.

Semantics are those of serving engines (vLLM "Expert Parallel Deployment"; SGLang "Expert Parallelism", hybrid with
tensor parallelism; TensorRT-LLM "Expert Parallelism", ``moe_tp_size`` x ``moe_ep_size``):

- gpus = tp x pp x dp. Ranks count stages first, then data-parallel replicas, then tensor-parallel shards. Stages get
  contiguous layers, the first ones one more where they do not divide. The first stage has embedding and towers, the
  last one everything behind the layers: norm, head (a tied matrix lies on both) and multi-token prediction.
- tp shards matrices of attention, FFN, shared experts, embedding and head (these over the vocabulary); norms, biases,
  routers, towers and whatever has no known role lie on every rank. Projections that make cached entries go with the
  cache: keys and values by heads, at least one on every rank; latents (MLA) and index keys whole on every rank. Facts
  cannot tell MLA's ``q_a`` and the gate of shared experts from other matrices: engines replicate them, here they count
  as sharded.
- ep ranks share out whole experts, the first ranks one more. R redundant experts are R more replicas in every layer:
  E + R slots. With ep < tp, tp/ep ranks shard each expert's matrices between them; with ep > tp whole replicas of
  attention work together; what ep does not cover of dp repeats. Without ep every replica shards all experts by tp
  (vLLM then shards them over tp x dp; ask for ep to share experts between replicas). Multi-token prediction layers as
  large as the last MoE layer hold experts like it.
- The batch is divided over dp; every rank has room for the larger share. States whose heads are unknown are whole on
  every rank.

Bytes that do not divide go to the first ranks, so that shards add up to the whole to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from moetool.accounting.kv_cache import CacheOptions, cache_bytes, state_bytes
from moetool.accounting.split import Split, check_split, decoder_layers
from moetool.model.facts import ModelFacts, ParameterGroup

_SHARDED = ("attention", "dense_ffn", "shared_experts", "lm_head", "mtp", "routed_experts")
"""Owners whose matrices tensor parallelism shards; the embedding is sharded too, but is not multiplied with."""


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """What one rank holds."""

    rank: int
    stage: int
    first_layer: int
    last_layer: int
    """Decoder layers of its stage, both included."""
    experts: int
    """Replicas of routed experts per MoE layer (most, where layers differ), each whole or a shard."""
    routed_expert_bytes: int
    other_weight_bytes: int
    kv_cache_bytes: int
    """With states."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.routed_expert_bytes + self.other_weight_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, cache and states."""
        return self.weight_bytes + self.kv_cache_bytes


def plan_devices(facts: ModelFacts, split: Split, cache: CacheOptions) -> tuple[DeviceLoad, ...]:
    """What every rank holds, in the order of ranks.

    Raises MoetoolError where the split is impossible for the model.
    """
    check_split(facts, split)
    caches = stage_caches(facts, split, cache)
    stages = [_weigh(facts, split, number, layers) for number, layers in enumerate(split_layers(facts, split.pp))]
    return tuple(
        row
        for number, (stage, whole) in enumerate(zip(stages, caches, strict=True))
        for row in _stage_rows(split, number, stage, whole)
    )


def split_layers(facts: ModelFacts, stages: int) -> tuple[range, ...]:
    """Decoder layers of every stage."""
    layers = decoder_layers(facts)
    bounds = [_before(len(layers), stages, stage) for stage in range(stages + 1)]
    return tuple(range(layers.start + a, layers.start + b) for a, b in pairwise(bounds))


def stage_caches(facts: ModelFacts, split: Split, cache: CacheOptions) -> tuple[int, ...]:
    """Bytes of cache and states on every rank of each stage."""
    own = replace(cache, batch=-(-cache.batch // split.dp))
    stages = split_layers(facts, split.pp)
    sums = [0] * split.pp
    for mixer in facts.mixers:
        stage = next((n for n, layers in enumerate(stages) if mixer.layer < layers.stop), split.pp - 1)
        for pool in mixer.pools:
            sums[stage] += _head_share(cache_bytes(pool, own), pool.heads, split.tp)
        for state in mixer.states:
            sums[stage] += _head_share(state_bytes(state, cache.dtype) * own.batch, state.heads, split.tp)
    return tuple(sums)


@dataclass(slots=True)
class _Stage:
    """Weights of one stage by how they are divided, in bytes."""

    layers: range
    whole: int = 0
    """On every rank."""
    sharded: int = 0
    """By tp."""
    experts: list[tuple[int, int]] = field(default_factory=list)
    """Bytes of the routed experts of each MoE layer, and their number."""
    drafts: tuple[int, int] = (0, 1)
    """The same of multi-token prediction."""


def _weigh(facts: ModelFacts, split: Split, stage: int, layers: range) -> _Stage:
    first, last = stage == 0, stage == split.pp - 1
    counts = {layer.layer: layer.experts for layer in facts.moe_layers if layer.layer in layers}
    routed = dict.fromkeys(counts, 0)
    attention: dict[int, tuple[int, int]] = {}
    tied = facts.tied_head and not any(group.owner == "lm_head" for group in facts.groups)
    drafts = _draft_experts(facts) if last else {}
    found = _Stage(layers)
    for group in facts.groups:
        if group.owner in ("embedding", "vision"):
            here = first or (last and tied and group.owner == "embedding")
        else:
            here = last if group.layer is None or group.owner == "mtp" else group.layer in layers
        if here and group.owner == "routed_experts" and group.layer in routed:
            routed[group.layer] += group.bytes
        elif here:
            size = group.bytes - drafts.get(group, 0)
            sharded = _matrix_bytes(group, size)
            found.sharded += sharded
            found.whole += size - sharded
            if group.owner == "attention" and group.layer is not None:
                before = attention.get(group.layer, (0, 0))
                attention[group.layer] = before[0] + sharded, before[1] + group.matrices
    found.experts = [(size, counts[layer]) for layer, size in routed.items()]
    if drafts:
        found.drafts = sum(drafts.values()), facts.moe_layers[-1].experts
    _move_projections(facts, split.tp, attention, found)
    return found


def _matrix_bytes(group: ParameterGroup, size: int) -> int:
    """Of ``size`` bytes of a group those that tp shards; scales go with their matrices."""
    if group.owner == "embedding":
        return size
    if group.owner not in _SHARDED:
        return 0
    if not group.parameters:
        return size
    return max(0, size - group.bytes * (group.parameters - group.matrices) // group.parameters)


def _draft_experts(facts: ModelFacts) -> dict[ParameterGroup, int]:
    """Bytes of experts in the groups of multi-token prediction, taken to be those of the last MoE layer."""
    if not facts.moe_layers:
        return {}
    like: dict[tuple[bool, str], int] = {}
    for group in facts.groups:
        if group.owner == "routed_experts" and group.layer == facts.moe_layers[-1].layer:
            key = group.role == "quantization", group.dtype
            like[key] = like.get(key, 0) + group.bytes
    pairs = [(g, like.get((g.role == "quantization", g.dtype), 0)) for g in facts.groups if g.owner == "mtp"]
    return {group: size for group, size in pairs if size} if all(g.bytes >= size for g, size in pairs) else {}


def _move_projections(facts: ModelFacts, tp: int, attention: dict[int, tuple[int, int]], stage: _Stage) -> None:
    """Projections whose outputs are cached by fewer heads than ranks are held by every rank: all of them, or a head.

    A projection has hidden size x cached numbers parameters, and its share of the bytes of the layer's attention.
    """
    left = {layer: matrices for layer, (_, matrices) in attention.items()}
    for mixer in facts.mixers:
        for pool in mixer.pools:
            size, matrices = attention.get(mixer.layer, (0, 0))
            heads = pool.heads or 1
            if not matrices or heads >= tp:
                continue
            parameters = min(pool.elements * (facts.hidden_size or 0), left[mixer.layer])
            left[mixer.layer] -= parameters
            moved = size * parameters // matrices
            stage.sharded -= moved
            stage.whole += -(-moved // heads)


def _stage_rows(split: Split, number: int, stage: _Stage, cache: int) -> Iterator[DeviceLoad]:
    width, redundant = split.expert_tp, split.redundant_experts
    slots, routed, drafts = [], [], []
    for rank in range(split.ep):
        slots.append(max((_share(count + redundant, split.ep, rank) for _, count in stage.experts), default=0))
        routed.append(sum(_expert_bytes(size, count, split, rank) for size, count in stage.experts))
        drafts.append(_expert_bytes(*stage.drafts, split, rank))
    for position in range(split.tp * split.dp):
        rank, shard = divmod(position % (split.ep * width), width)
        other = stage.whole + _share(stage.sharded, split.tp, position % split.tp) + _share(drafts[rank], width, shard)
        yield DeviceLoad(
            rank=number * split.tp * split.dp + position,
            stage=number,
            first_layer=stage.layers.start,
            last_layer=stage.layers.stop - 1,
            experts=slots[rank],
            routed_expert_bytes=_share(routed[rank], width, shard),
            other_weight_bytes=other,
            kv_cache_bytes=cache,
        )


def _expert_bytes(size: int, count: int, split: Split, rank: int) -> int:
    """Bytes of one layer's experts on an ep rank; experts of different size count as their mean."""
    slots = count + split.redundant_experts
    return size * _before(slots, split.ep, rank + 1) // count - size * _before(slots, split.ep, rank) // count


def _head_share(size: int, heads: int | None, tp: int) -> int:
    """Of ``size`` bytes what the fullest rank holds: whole heads, at least one; all where there are none to share."""
    return size if heads is None else -(-size * -(-heads // tp) // heads)


def _before(total: int, parts: int, index: int) -> int:
    """Items of the first ``index`` of so many equal parts, of which the first get one more where they do not divide."""
    return index * (total // parts) + min(index, total % parts)


def _share(total: int, parts: int, index: int) -> int:
    return _before(total, parts, index + 1) - _before(total, parts, index)
