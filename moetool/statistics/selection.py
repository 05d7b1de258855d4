"""Which experts to train for a task, as ESFT chooses them: enters as a RoutingTrace, leaves as experts by layer.

Expert-specialized fine-tuning (arXiv 2407.01906) scores the experts of each layer by the tokens of a task and takes the
highest until their scores add up to a threshold. The domains of a trace are its tasks. Its published scores and
selections (github deepseek-ai/ESFT, 579a771: token score, threshold 0.2) come out of the published routing exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace, TraceLayer
from moetool.errors import MoetoolError
from moetool.statistics.load import slot_share

SCORES = ("token", "gate")
"""``token``: share of the slots, so a layer's scores add up to 1. ``gate``: mean weight over all tokens, 0 where the
expert was not chosen; a layer's scores add up to what the weights of a token do on average, below 1 in families that do
not normalise them."""
DECIMALS = 4
"""ESFT writes scores with so many decimals and selects by what it has written, so they decide ties."""


def select_experts(trace: RoutingTrace, domain: str, score: str, top_p: float) -> dict[int, tuple[int, ...]]:
    """The experts to train for a domain by decoder layer, highest score first.

    ``top_p`` is the score, above 0 and up to 1, that the experts of a layer reach together. Experts that compute
    nothing are left out. Raises MoetoolError for a threshold out of range and as ``expert_scores`` does.
    """
    if not 0 < top_p <= 1:
        raise MoetoolError(f"the threshold of the scores is {top_p}", "name a share above 0 and up to 1, as 0.2")
    scores = expert_scores(trace, domain, score)
    return {
        layer.layer: highest(own[: layer.experts - layer.zero_experts], top_p)
        for layer, own in zip(trace.layers, scores, strict=True)
    }


def highest(scores: NDArray[np.float64], top_p: float) -> tuple[int, ...]:
    """The fewest experts whose ``scores [E]`` reach ``top_p`` together, highest first, of equal ones the lower number.

    All with a score above 0 where the scores of the layer do not add up to as much.
    """
    order = np.argsort(-scores, kind="stable")
    reached = int(np.searchsorted(np.cumsum(scores[order]), top_p)) + 1
    return tuple(int(expert) for expert in order[:reached] if scores[expert] > 0)


def expert_scores(trace: RoutingTrace, domain: str, score: str) -> tuple[NDArray[np.float64], ...]:
    """Scores ``[E]`` of every layer over the counted tokens of a domain, rounded as ESFT writes them.

    Every token counts alike, as in ESFT's code: no budget, and no template masked beyond special tokens. Raises
    MoetoolError for an unknown score or domain, a domain without counted tokens, and a gate score without weights.
    """
    if score not in SCORES:
        raise MoetoolError(f"there is no score {score!r} of experts", f"name one of {', '.join(SCORES)}")
    position = _tokens_of(trace, domain)
    of_layer = _token_score if score == "token" else _gate_score
    return tuple(np.round(of_layer(layer, position), DECIMALS) for layer in trace.layers)


def _tokens_of(trace: RoutingTrace, domain: str) -> NDArray[np.int64]:
    """Positions of the counted tokens of a domain."""
    if domain not in trace.domains:
        known = ", ".join(map(repr, trace.domains))
        raise MoetoolError(f"the trace has no domain {domain!r}", f"name one of {known}")
    of_domain = trace.domain_of_document() == trace.domains.index(domain)
    position = np.flatnonzero(of_domain[trace.document_of_token()] & trace.counted)
    if not position.size:
        raise MoetoolError(f"the domain {domain!r} has no tokens to count", "give it longer documents")
    return position


def _token_score(layer: TraceLayer, position: NDArray[np.int64]) -> NDArray[np.float64]:
    return slot_share(np.bincount(layer.chosen[position].ravel(), minlength=layer.experts))


def _gate_score(layer: TraceLayer, position: NDArray[np.int64]) -> NDArray[np.float64]:
    """A weight that is not finite counts as 0."""
    if layer.weight is None:
        raise MoetoolError(f"the trace has no weights in layer {layer.layer}, so no gate score", "use the token score")
    weight = np.nan_to_num(layer.weight[position].astype(np.float64), posinf=0, neginf=0)
    sums = np.bincount(layer.chosen[position].ravel(), weights=weight.ravel(), minlength=layer.experts)
    return np.asarray(sums / len(position))
