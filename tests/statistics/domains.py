"""Synthetic traces with planted preferences, and published ones, for the tests of specialization."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace, TraceDocument, TraceLayer
from moetool.progress import SilentProgress
from moetool.statistics.budget import sample_tokens
from moetool.statistics.counts import GroupCounts, count_groups

ESFT = Path(__file__).parents[3] / "shared" / "data" / "routing" / "esft_law_intent.npz"


def trace_of(
    documents: list[tuple[str, str, int]],
    chosen: list[NDArray[np.integer]],
    experts: int,
    tokens: NDArray[np.integer] | None = None,
) -> RoutingTrace:
    """A trace of documents (domain, group, tokens) and one ``[T, K]`` array per layer; token ids unknown by default."""
    starts = np.concatenate([[0], np.cumsum([length for _, _, length in documents])])
    return RoutingTrace(
        {"name": "planted", "revision": None, "family": "planted", "config_sha256": ""},
        tuple(
            TraceDocument(f"{domain}-{i}", domain, group, int(starts[i]), length, "")
            for i, (domain, group, length) in enumerate(documents)
        ),
        np.zeros(starts[-1], dtype=np.int32) if tokens is None else np.asarray(tokens, dtype=np.int32),
        np.zeros(starts[-1], dtype=bool),
        {},
        tuple(
            TraceLayer(i + 1, experts, array.shape[1], "softmax", array.astype(np.uint8))
            for i, array in enumerate(chosen)
        ),
        {},
        {},
    )


def planted_trace(
    seed: int,
    domains: int = 4,
    documents: int = 24,
    tokens: int = 200,
    layers: int = 3,
    experts: int = 16,
    experts_per_token: int = 2,
    lifts: Mapping[tuple[int, int, int], float] | None = None,
    concentration: float = 40.0,
    unequal: bool = True,
) -> RoutingTrace:
    """Documents whose taste is drawn around that of their domain, then tokens drawn from the document's taste.

    ``lifts`` maps (layer index, expert, domain) to the planted lift. A document's slot shares are Dirichlet with the
    given concentration (40: an expert's share varies by 60 % from document to document); its choices are a systematic
    sample, so that an expert's expected token share is exactly K times its slot share.
    """
    rng = np.random.default_rng(seed)
    expected = expected_slot_shares(domains, layers, experts, lifts)
    names = [(f"domain{d}", f"group{d}-{g}") for d in range(domains) for g in range(documents)]
    lengths = [int(tokens * rng.uniform(0.4, 1.6)) if unequal else tokens for _ in names]
    chosen: list[list[NDArray[np.integer]]] = [[] for _ in range(layers)]
    for i, length in enumerate(lengths):
        for layer in range(layers):
            share = rng.dirichlet(concentration * expected[i // documents, layer])
            chosen[layer].append(systematic_choices(share, length, experts_per_token, rng))
    return trace_of(
        [(*name, length) for name, length in zip(names, lengths, strict=True)],
        [np.concatenate(layer) for layer in chosen],
        experts,
    )


def expected_slot_shares(
    domains: int, layers: int, experts: int, lifts: Mapping[tuple[int, int, int], float] | None
) -> NDArray[np.float64]:
    """``[D, L, E]``: a lifted expert's mean over domains stays 1/E, experts without a planted lift share the rest."""
    share = np.full((domains, layers, experts), 1 / experts)
    planted = {(layer, expert) for layer, expert, _ in lifts or {}}
    for (layer, expert, domain), lift in (lifts or {}).items():
        share[:, layer, expert] = (domains - lift) / (domains - 1) / experts
        share[domain, layer, expert] = lift / experts
    for layer in range(layers):
        plain = [expert for expert in range(experts) if (layer, expert) not in planted]
        rest = 1 - share[:, layer].sum(axis=1) + share[:, layer][:, plain].sum(axis=1)
        share[:, layer, plain] = (rest / len(plain))[:, None]
    return share


def systematic_choices(
    share: NDArray[np.float64], tokens: int, experts_per_token: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``[T, K]`` distinct experts, expert e with probability K share_e (no share above 1/K)."""
    probability = experts_per_token * share
    for _ in range(8):
        probability = np.minimum(probability, 0.999)
        probability *= experts_per_token / probability.sum()
    edges = np.cumsum(probability)
    edges[-1] = experts_per_token
    points = rng.random((tokens, 1)) + np.arange(experts_per_token)
    return np.searchsorted(edges, points, side="right").clip(0, len(share) - 1)


def esft_trace(tasks: tuple[str, ...] = ("law", "intent")) -> RoutingTrace:
    """Published routing of a trained model on two tasks (deepseek-ai/ESFT 579a771); skips where the file is absent."""
    if not ESFT.is_file():
        pytest.skip(f"{ESFT} is not here: the published routing is not part of the project")
    data = np.load(ESFT)
    documents = [
        (task, f"{task}-{i}", int(length)) for task in tasks for i, length in enumerate(data[f"{task}_doc_lengths"])
    ]
    chosen = np.concatenate([data[f"{task}_expert_ids"] for task in tasks])
    return trace_of(documents, [chosen[:, layer] for layer in range(chosen.shape[1])], 64)


def counts_of(trace: RoutingTrace, seed: int = 0) -> GroupCounts:
    """Counts of a trace after the budget, as the analysis makes them."""
    return count_groups(trace, sample_tokens(trace, seed).keep, SilentProgress())
