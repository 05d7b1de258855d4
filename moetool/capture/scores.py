"""What a router's logits say about a choice: entropy, top-1 probability, margin and logsumexp of every token."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from moetool.capture.routers import MoELayer

BIAS_NAMES = ("e_score_correction_bias", "expert_bias", "balancing_biases")


def router_scores(
    moe: MoELayer, logits: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Per token the four SCORE_COLUMNS ``[N, 4]``, the router's distribution ``[N, E]`` and the ``rerouted [N]``.

    Softmax routers: ``p = softmax(logits)``; others: the scores divided by their sum (DeepSeek-V3).
    The margin is NaN for a token whose choice is not the top K of the score that is known here, and the logsumexp is
    NaN for routers that return probabilities only.
    """
    normaliser = logits.logsumexp(-1)
    if moe.family.router_output == "probabilities":
        normaliser = torch.full_like(normaliser, float("nan"))
    score, probability = distribution(moe, logits)
    entropy = -torch.special.xlogy(probability, probability).sum(-1)
    selecting = logits if moe.family.selects_by == "logits" else score
    columns = (entropy, probability.amax(-1), _margin(moe, selecting, chosen), normaliser)
    return torch.stack(columns, dim=-1), probability, _rerouted(moe, selecting, chosen)


def distribution(moe: MoELayer, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores ``[N, E]`` that experts are chosen and weighted by, before biases, and the same as probabilities."""
    if moe.family.router_output == "probabilities":
        return logits, logits
    if moe.family.scoring == "softmax":
        probability = logits.softmax(-1)
        return probability, probability
    score = logits.sigmoid() if moe.family.scoring == "sigmoid" else softplus(logits).sqrt()
    return score, score / score.sum(-1, keepdim=True).clamp_min(torch.finfo(score.dtype).tiny)


def _margin(moe: MoELayer, score: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Lowest chosen minus highest refused score, after the correction bias and inside the selected groups."""
    if moe.experts == moe.experts_per_token or moe.scoring == "hash":
        return torch.full_like(score[:, 0], float("nan"))
    bias = correction_bias(moe)
    selecting = score if bias is None else score + bias.to(score).reshape(1, -1)
    selecting = _limit_to_groups(moe, selecting)
    lowest_chosen = selecting.gather(1, chosen.long()).amin(-1)
    refused = selecting.scatter(1, chosen.long(), float("-inf")).amax(-1)
    margin = lowest_chosen - refused
    return torch.where((margin >= 0) & margin.isfinite(), margin, float("nan"))


def _rerouted(moe: MoELayer, score: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor | None:
    """``[N]`` uint8: chosen experts that the same choice without correction bias refuses; None without a bias."""
    if correction_bias(moe) is None or moe.scoring == "hash":
        return None
    selecting = _limit_to_groups(moe, score)
    lowest = selecting.topk(moe.experts_per_token, dim=-1).values[:, -1:]
    return (selecting.gather(1, chosen.long()) < lowest).sum(-1).to(torch.uint8)


def correction_bias(moe: MoELayer) -> torch.Tensor | None:
    """What is added to the scores when experts are selected, and not when they are weighted; None without one."""
    for place in (moe.router, moe.parent, getattr(moe.router, "moe_statics", None)):
        for name in BIAS_NAMES:
            bias = getattr(place, name, None)
            if isinstance(bias, torch.Tensor) and bias.numel() == moe.experts:
                return bias
    return None


def _limit_to_groups(moe: MoELayer, selecting: torch.Tensor) -> torch.Tensor:
    """Scores outside the best groups become -inf, or 0; a group scores the sum of its best two (DeepSeek-V3)."""
    groups = moe.expert_groups
    if not groups:
        return selecting
    kept = moe.router.topk_group
    assert isinstance(kept, int)
    grouped = selecting.view(len(selecting), groups, -1)
    best = (
        grouped.amax(-1)
        if moe.family.group_score == "max"
        else grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
    )
    allowed = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(kept, dim=-1).indices, True)
    return grouped.masked_fill(~allowed.unsqueeze(-1), moe.family.group_fill).view_as(selecting)
