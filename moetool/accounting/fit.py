"""Whether a deployment fits: enters ModelFacts, a Split, cache and a GPU's memory, leaves what fits and what would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

from moetool.accounting.kv_cache import CacheOptions
from moetool.accounting.parallel import DeviceLoad, plan_devices, stage_caches
from moetool.accounting.split import MAX_GPUS, Split, decoder_layers
from moetool.checkpoint.sizes import parse_size
from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts

_MIB = 2**20
GPU_BYTES = {
    "a100-40gb": 40536 * _MIB,
    "a100-80gb": 81920 * _MIB,
    "h100-80gb": 81559 * _MIB,
    "h200-141gb": 143771 * _MIB,
    "b200-180gb": 183359 * _MIB,
    "l4-24gb": 23034 * _MIB,
    "l40s-48gb": 46068 * _MIB,
    "a30-24gb": 24576 * _MIB,
    "a40-48gb": 46068 * _MIB,
    "a6000-48gb": 49140 * _MIB,
    "rtx-6000-ada-48gb": 49140 * _MIB,
    "rtx-3090-24gb": 24576 * _MIB,
    "rtx-4090-24gb": 24564 * _MIB,
    "rtx-5090-32gb": 32607 * _MIB,
    "mi300x-192gb": 206_141_652_992,
}
"""Total memory by name, as ``nvidia-smi`` (MiB) and ``rocm-smi`` (MI300X, bytes) show it in published listings: names
round it. Drivers and settings differ by some hundred MiB; error correction takes a part of it on L4, L40S and A40."""

ENGINE_SHARE = Fraction(9, 10)
"""Of a GPU's memory what an engine uses for weights, cache and activations: vLLM's long-standing default of
``--gpu-memory-utilization`` (0.9). The rest is for the driver, the CUDA context and communication."""

GPUS_PER_NODE = 8
"""Most ranks of tensor parallelism that a search tries: those of one node with fast links (HGX, MI300X platforms)."""

_LEAST_BYTES = 2**20
_MOST_BYTES = 2**50
_LONGEST = 2**40
"""Tokens or sequences at which a search for the largest stops: what still fits does not grow."""


def parse_memory(text: str) -> int:
    """Bytes of a GPU's memory, given as a name (``h100-80gb``) or a size (``80GiB``, ``80 GB``, ``80e9``).

    GB are 10^9 bytes, GiB 2^30. Raises MoetoolError for anything else and for sizes that no GPU has.
    """
    written = text.strip()
    if written.lower() in GPU_BYTES:
        return GPU_BYTES[written.lower()]
    size = parse_size(written)
    if size is None:
        raise MoetoolError(
            f"--gpu-memory {text!r} is neither a size nor a known GPU",
            f"write a size such as 80GiB or 80GB, or one of {', '.join(GPU_BYTES)}",
        )
    if not _LEAST_BYTES <= size <= _MOST_BYTES:
        raise MoetoolError(
            f"--gpu-memory {text!r} is {size if size < _LEAST_BYTES else 'more than 2^50'} bytes, which no GPU has",
            "name the unit: 80GiB",
        )
    return size


def default_reserve(gpu_memory_bytes: int) -> int:
    """Bytes that an engine leaves to others; see ``ENGINE_SHARE``."""
    return gpu_memory_bytes - int(gpu_memory_bytes * ENGINE_SHARE)


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether and how much fits into the memory of every GPU."""

    fits: bool
    fullest: DeviceLoad
    """The first of the ranks that hold most."""
    free_bytes: int
    """Left there, without the reserve; negative by what is missing."""
    largest_context: int | None
    """Tokens per sequence at the batch asked for, 0 for none; None where the context takes no more memory."""
    largest_batch: int | None
    """Sequences at the context asked for; None where they take no memory."""
    fewest: Split | None
    """The split of the same kind with the fewest GPUs; None where no split that was tried fits."""


def fit(facts: ModelFacts, split: Split, cache: CacheOptions, gpu_memory_bytes: int, reserve_bytes: int) -> Fit:
    """Compare the fullest rank with a GPU's memory, and search for what would just fit.

    ``reserve_bytes``: of every GPU, for what is neither weight nor cache. The largest context may be longer than the
    model allows. Raises MoetoolError where the split is impossible or the reserve leaves nothing.
    """
    usable = gpu_memory_bytes - reserve_bytes
    if usable <= 0:
        raise MoetoolError(
            f"a reserve of {reserve_bytes} bytes leaves nothing of the GPU's {gpu_memory_bytes}",
            "give more --gpu-memory or a smaller reserve",
        )
    rows = plan_devices(facts, split, cache)
    fullest = max(rows, key=lambda row: (row.total_bytes, -row.rank))
    weights = [max(row.weight_bytes for row in rows if row.stage == stage) for stage in range(split.pp)]

    def fitting(options: CacheOptions) -> bool:
        caches = stage_caches(facts, split, options)
        return all(weight + size <= usable for weight, size in zip(weights, caches, strict=True))

    fits = fullest.total_bytes <= usable
    fewest = fewest_gpus(facts, split, cache, usable)
    if fits and (fewest is None or fewest.gpus > split.gpus):
        fewest = split  # of a kind that the search does not try: more than a node wide, or ep over a part of dp
    return Fit(
        fits=fits,
        fullest=fullest,
        free_bytes=usable - fullest.total_bytes,
        largest_context=_largest(lambda tokens: fitting(replace(cache, context_tokens=tokens))),
        largest_batch=_largest(lambda batch: fitting(replace(cache, batch=batch))),
        fewest=fewest,
    )


def _largest(fits: Callable[[int], bool]) -> int | None:
    """The largest number that fits, where every smaller one does: 0 for none, None for no limit."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        if high >= _LONGEST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fewest_gpus(facts: ModelFacts, split: Split, cache: CacheOptions, usable_bytes: int) -> Split | None:
    """The first split that fits of those that ``similar_splits`` gives; None where none does.

    ``usable_bytes``: of every GPU, for weights and cache.
    """
    for candidate in similar_splits(facts, split):
        if candidate.gpus * usable_bytes < facts.total_bytes:
            continue  # every byte lies somewhere, so such a split need not be planned
        try:
            rows = plan_devices(facts, candidate, cache)
        except MoetoolError:
            continue
        if all(row.total_bytes <= usable_bytes for row in rows):
            return candidate
    return None


def similar_splits(facts: ModelFacts, split: Split) -> Iterator[Split]:
    """Splits of the same kind, by their number of GPUs; some may be impossible.

    Experts shared between replicas (ep and dp): more replicas, ep over all of them. Otherwise tensor parallelism over
    the divisors of the heads up to one node (``GPUS_PER_NODE``) times up to as many stages as there are layers; with ep
    whole experts instead of shards; dp as it is.
    """
    if split.ep > 1 and split.dp > 1:
        slots = max((layer.experts for layer in facts.moe_layers), default=0) + split.redundant_experts
        for dp in range(1, min(slots, MAX_GPUS // split.pp) // split.tp + 1):
            ep = split.tp * dp
            redundant = split.redundant_experts if ep > 1 else 0
            yield Split(ep * split.pp, split.tp, split.pp, dp, ep, redundant)
        return
    widths = [tp for tp in range(1, GPUS_PER_NODE + 1) if not facts.heads or facts.heads % tp == 0]
    stages = range(1, len(decoder_layers(facts)) + 1)
    # Of two splits with as many GPUs the one with fewer stages: its tokens take fewer steps.
    for tp, pp in sorted(product(widths, stages), key=lambda shape: (shape[0] * shape[1], shape[1])):
        gpus = tp * pp * split.dp
        if gpus <= MAX_GPUS:
            ep = tp if split.ep > 1 else 1
            yield Split(gpus, tp, pp, split.dp, ep, split.redundant_experts if ep > 1 else 0)
