"""Which experts go to the host where one GPU is too small: enters ModelFacts, cache and memory, leaves an OffloadPlan.

Everything outside the routed experts stays on the GPU, with the cache; whole layers' experts go to the host, the first
MoE layers first, as few as fit. That is llama.cpp's ``--n-cpu-moe N`` (pull request 15077), which keeps the experts of
the first N blocks on the CPU and **computes them there**, so that activations cross the bus and no weights do. (It
keeps the input embedding on the host as well, so that a little more fits.) transformers with a ``device_map`` copies
the whole experts of such a layer to the GPU in every forward pass: ``host_bytes`` per pass. An engine that fetches only
the chosen experts, and caches none, moves ``bus_bytes_per_token``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.accounting.kv_cache import CacheOptions, total_cache
from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class OffloadPlan:
    """What lies where, and how to tell engines."""

    offloaded_layers: tuple[int, ...]
    """Decoder layers whose routed experts lie on the host."""
    device_bytes: int
    """On the GPU: weights, cache and states."""
    host_bytes: int
    host_share: float
    """Of the bytes of routed experts, those on the host; 0 for a dense model."""
    bus_bytes_per_token: int | None
    """If chosen experts were fetched for every token: K/E of the offloaded experts, layer by layer; None where K is
    unknown."""
    device_map: dict[str, int | str] | None
    """For transformers' ``from_pretrained``: module path -> 0 or "cpu"; None where module paths were not given."""

    @property
    def n_cpu_moe(self) -> int:
        """N of llama.cpp's ``--n-cpu-moe``: it counts all blocks, leading dense ones too."""
        return self.offloaded_layers[-1] + 1 if self.offloaded_layers else 0

    @property
    def llama_cpp(self) -> str:
        """Arguments for llama.cpp; empty where nothing is offloaded."""
        return f"--n-cpu-moe {self.n_cpu_moe}" if self.offloaded_layers else ""

    @property
    def override_tensor(self) -> str:
        """The same as a pattern of tensor names, for versions without ``--n-cpu-moe`` and for other choices of layers.

        ``exps`` are routed experts; ``_shexp``, the shared ones, stay.
        """
        if not self.offloaded_layers:
            return ""
        blocks = number_pattern(
            self.offloaded_layers[0], self.offloaded_layers[-1]
        )  # dense blocks between have no experts
        return rf'-ot "blk\.({blocks})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"'


def plan_offload(
    facts: ModelFacts,
    cache: CacheOptions,
    gpu_memory_bytes: int,
    reserve_bytes: int,
    prefixes: Mapping[int, str] | None = None,
) -> OffloadPlan:
    """The fewest layers whose experts must leave one GPU.

    ``prefixes``: the module path of the routed experts of each MoE layer, ``model.layers.3.mlp.experts``. Raises
    MoetoolError where the rest of the model does not fit either.
    """
    usable = gpu_memory_bytes - reserve_bytes
    experts = dict.fromkeys((layer.layer for layer in facts.moe_layers), 0)
    for group in facts.groups:
        if group.owner == "routed_experts" and group.layer in experts:
            experts[group.layer] += group.bytes
    total = total_cache(facts.mixers, cache)
    context = total.cache_bytes + total.state_bytes
    staying = facts.total_bytes + context
    offloaded: list[int] = []
    for layer, size in experts.items():
        if staying <= usable:
            break
        staying -= size
        offloaded.append(layer)
    if staying > usable:
        raise MoetoolError(
            f"{usable / 2**30:.2f} GiB of the GPU can be used, but what must stay takes {staying / 2**30:.2f} GiB: "
            f"{(staying - context) / 2**30:.2f} GiB of weights outside the routed experts, "
            f"{context / 2**30:.2f} GiB of cache",
            "shorten the context, lower the batch or give a GPU with more memory",
        )
    host = sum(experts[layer] for layer in offloaded)
    return OffloadPlan(
        offloaded_layers=tuple(offloaded),
        device_bytes=staying,
        host_bytes=host,
        host_share=host / sum(experts.values()) if host else 0.0,
        bus_bytes_per_token=_bus_bytes(facts, experts, offloaded),
        device_map=None if prefixes is None else {"": 0, **{prefixes[layer]: "cpu" for layer in offloaded}},
    )


def _bus_bytes(facts: ModelFacts, experts: Mapping[int, int], offloaded: list[int]) -> int | None:
    fetched = 0
    for layer in facts.moe_layers:
        if layer.layer in offloaded:
            if layer.experts_per_token is None:
                return None
            fetched += -(-experts[layer.layer] * layer.experts_per_token // layer.experts)
    return fetched


def number_pattern(first: int, last: int) -> str:
    """A pattern for the whole numbers from first to last: ``[3-9]|[1-5][0-9]|60``."""
    parts = []
    while first <= last:
        # The widest run first..end that differs in its last digits only, which then take every value.
        span = 1
        while first % (10 * span) == 0 and first and first + 10 * span - 1 <= last:
            span *= 10
        top = min(first // span % 10 + (last - first + 1) // span - 1, 9)
        end = (first // span // 10 * 10 + top) * span + span - 1
        digits = str(first // span)
        leading, low = digits[:-1], int(digits[-1])
        part = leading + (str(low) if low == top else f"[{low}-{top}]") + "[0-9]" * (len(str(span)) - 1)
        parts.append(part)
        first = end + 1
    return "|".join(parts)
