"""Slow and independent: the statistics of one layer in plain Python loops, from their definitions."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

from moetool.capture.trace import RoutingTrace


def reference_statistics(trace: RoutingTrace, index: int = 0) -> dict[str, Any]:
    """Keys of the layer table, and ``counts`` and ``pairs``; needs weights."""
    layer = trace.layers[index]
    assert layer.weight is not None
    experts, k = layer.experts, layer.experts_per_token
    sets, first, place = [], [], []
    for number, document in enumerate(trace.documents):
        for token in range(document.start, document.start + document.tokens):
            if not trace.special[token]:
                row = [int(expert) for expert in layer.chosen[token]]
                weights = [float(weight) for weight in layer.weight[token]]
                sets.append(set(row))
                first.append(row[weights.index(max(weights))])
                place.append((number, token))
    counts = Counter(expert for chosen in sets for expert in chosen)
    load = [counts[expert] for expert in range(experts)]
    slots = sum(load)
    share = [count / slots for count in load]
    mean = slots / experts
    entropy = -sum(f * math.log(f) for f in share if f)
    neighbours = [
        i for i in range(1, len(sets)) if place[i][0] == place[i - 1][0] and place[i][1] == place[i - 1][1] + 1
    ]
    everyone = list(combinations(range(len(sets)), 2))
    firsts = Counter(first)
    return {
        "counts": load,
        "pairs": Counter(pair for chosen in sets for pair in combinations(sorted(chosen), 2)),
        "max_violation": max(load) / mean - 1,
        "busiest_expert": load.index(max(load)),
        "min_violation": (mean - min(load)) / mean,
        "cv": math.sqrt(sum((count - mean) ** 2 for count in load) / experts) / mean,
        # Half the relative mean absolute difference, the other definition of the Gini coefficient.
        "gini": sum(abs(a - b) for a in share for b in share) / (2 * experts),
        "entropy": entropy / math.log(experts) if experts > 1 else None,
        "effective_experts": math.exp(entropy),
        "first_repeat": _mean(first[i] == first[i - 1] for i in neighbours),
        "first_repeat_matched": sum((count / len(first)) ** 2 for count in firsts.values()),
        "any_repeat": _mean(bool(sets[i] & sets[i - 1]) for i in neighbours),
        "any_repeat_matched": _mean(bool(sets[i] & sets[j]) for i, j in everyone),
        "overlap": _mean(len(sets[i] & sets[i - 1]) / k for i in neighbours),
        # Two tokens drawn independently, so a token may meet itself.
        "overlap_matched": _mean(len(a & b) / k for a in sets for b in sets),
        "topk_mass": _mean(sum(map(float, layer.weight[token])) for _, token in place),
    }


def _mean(values: Any) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
