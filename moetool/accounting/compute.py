"""What a token costs to compute: enters ModelFacts and a context, leaves FLOPs by component.

A multiply-add counts as two FLOPs. Counted are matrix products, attention to the context, and recurrent states; norms,
activations, softmax and rotary embeddings are not, as in ``torch.utils.flop_counter`` (under its ``eager`` experts).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from moetool.accounting.ledger import active_sum
from moetool.model.caches import Mixer
from moetool.model.facts import ModelFacts, ParameterGroup

CONTEXT = "attention_to_context"
STATE = "recurrent_state"
TRAINING_FLOPS_PER_PARAMETER = 6
"""Forward 2, backward 4 (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""


@dataclass(frozen=True, slots=True)
class ComponentCost:
    """FLOPs of one component of a forward pass."""

    component: str
    """A role, or ``attention_to_context`` and ``recurrent_state``, which have no parameters."""
    parameters: int
    """Parameters that a token is multiplied with."""
    decode_flops: int
    """Of one new token whose context is as long as asked for, itself included."""
    prefill_flops: int
    """Of reading the whole context at once; the output head is computed for its last token only."""


def component_costs(facts: ModelFacts, context_tokens: int) -> tuple[ComponentCost, ...] | None:
    """FLOPs of one sequence by component, the dearest first; None where the experts per token are unknown."""
    matrices = active_matrices(facts)
    if matrices is None:
        return None
    costs = [
        ComponentCost(role, size, 2 * size, 2 * size * (1 if role == "lm_head" else context_tokens))
        for role, size in matrices.items()
        if size
    ]
    decode = sum(2 * decode_products(mixer, context_tokens) for mixer in facts.mixers)
    prefill = sum(2 * prefill_products(mixer, context_tokens) for mixer in facts.mixers)
    states = sum(2 * mixer.state_products for mixer in facts.mixers)
    costs += [ComponentCost(CONTEXT, 0, decode, prefill)] * bool(prefill)
    costs += [ComponentCost(STATE, 0, states, states * context_tokens)] * bool(states)
    return tuple(sorted(costs, key=lambda cost: (-cost.decode_flops, cost.component)))


def active_matrices(facts: ModelFacts) -> dict[str, int] | None:
    """Parameters by role that one token is multiplied with; a tied head is a product with the input embedding."""
    layer_of = {layer.layer: layer for layer in facts.moe_layers}
    by_role: dict[str, list[ParameterGroup]] = defaultdict(list)
    for group in facts.groups:
        by_role[group.owner].append(group)
    sums: dict[str, int] = {}
    for role, groups in by_role.items():
        size = active_sum(groups, layer_of, lambda group: group.matrices)
        if size is None:
            return None
        sums[role] = size
    if facts.tied_head and not sums.get("lm_head") and facts.hidden_size and facts.vocabulary:
        sums["lm_head"] = facts.hidden_size * facts.vocabulary
    return sums


def decode_products(mixer: Mixer, context_tokens: int) -> int:
    """Multiply-adds of the last token of a context with what it attends to."""
    window = mixer.window
    if mixer.kind == "chunked" and window:
        seen = (context_tokens - 1) % window + 1
    else:
        seen = context_tokens if window is None else min(context_tokens, window)
    candidates = seen // mixer.every
    attended = candidates if mixer.chosen is None else min(candidates, mixer.chosen)
    return attended * mixer.decode_products + candidates * mixer.index_products


def prefill_products(mixer: Mixer, context_tokens: int) -> int:
    """Multiply-adds of every token of a context with those before it and itself."""
    window = mixer.window
    if mixer.kind == "chunked" and window:
        whole, rest = divmod(context_tokens, window)
        pairs = candidates = whole * window * (window + 1) // 2 + rest * (rest + 1) // 2
    else:
        candidates = _pairs(context_tokens, mixer.every, window)
        most = [tokens for tokens in (window, mixer.chosen and mixer.chosen * mixer.every) if tokens is not None]
        pairs = _pairs(context_tokens, mixer.every, min(most, default=None))
    return pairs * mixer.prefill_products + candidates * mixer.index_products


def _pairs(tokens: int, every: int, window: int | None) -> int:
    """Sum over t = 1..tokens of min(t, window) // every."""
    inside = tokens if window is None else min(tokens, window)
    whole, rest = divmod(inside, every)
    ramp = every * whole * (whole - 1) // 2 + whole * (rest + 1)
    return ramp + (tokens - inside) * (inside // every)


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A model beside this one."""

    name: str
    parameters: int
    weight_bytes: int
    flops_per_token: int


def equivalents(facts: ModelFacts, total: tuple[int, int], active: tuple[int, int], flops: int) -> list[Equivalent]:
    """This model, a dense one of equal compute and a dense one of equal memory.

    ``total`` and ``active``: parameters and bytes; ``flops``: of one token. A dense model multiplies every token with
    all its matrices.
    """
    routed = sum(group.matrices for group in facts.groups if group.owner == "routed_experts")
    idle = routed - (active_matrices(facts) or {}).get("routed_experts", 0)
    return [
        Equivalent("this model", *total, flops),
        Equivalent("dense, equal compute", *active, flops),
        Equivalent("dense, equal memory", *total, flops + 2 * idle),
    ]


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Bytes of one part of the memory of training."""

    part: str
    bytes_per_parameter: int
    bytes: int


OPTIMIZERS: dict[str, tuple[tuple[str, int], ...]] = {
    "adamw": (("weights", 2), ("gradients", 2), ("master weights", 4), ("momentum", 4), ("variance", 4)),
    "adamw-8bit": (("weights", 2), ("gradients", 2), ("master weights", 4), ("momentum", 1), ("variance", 1)),
    "sgd": (("weights", 2), ("gradients", 2), ("master weights", 4)),
}
"""Bytes per parameter of mixed-precision training: 16 with Adam (Rajbhandari et al. 2020, arXiv:1910.02054, section
3.1); with states in 8 bits (Dettmers et al. 2022, arXiv:2110.02861) 10; without states 8."""


def training_costs(parameters: int, optimizer: str) -> tuple[TrainingCost, ...]:
    """Memory of all parameters, those of idle experts too: every one has a gradient and optimizer states."""
    return tuple(TrainingCost(part, size, size * parameters) for part, size in OPTIMIZERS[optimizer])


def total_flops(costs: Iterable[ComponentCost]) -> tuple[int, int]:
    """Decode FLOPs of a token and prefill FLOPs of the context, over all components."""
    costs = tuple(costs)
    return sum(cost.decode_flops for cost in costs), sum(cost.prefill_flops for cost in costs)
