"""Every routing statistic, one line each: its JSON key, heading, unit, help and function from a LayerSample to a value.

A statistic whose arrays a trace lacks is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moetool.statistics import coactivation, load, locality, router
from moetool.statistics.documents import COLD, DEAD, UNOBSERVED
from moetool.statistics.sample import LayerSample

Value = str | int | float | None
Unit = Literal["text", "count", "share", "ratio", "number", "nats"]
PAIRS_PER_LAYER = 10


@dataclass(frozen=True, slots=True)
class Quantity:
    """What a number is called and means; one column of a table."""

    key: str
    title: str
    unit: Unit
    help: str
    """One sentence, with the baseline."""
    detail: bool = False
    """Left out of tables for the terminal."""


@dataclass(frozen=True, slots=True)
class LayerStatistic(Quantity):
    """One value per MoE layer."""

    compute: Callable[[LayerSample], Value] = lambda sample: None


@dataclass(frozen=True, slots=True)
class ExpertStatistic(Quantity):
    """One value per expert of a layer; None stands for E times None."""

    compute: Callable[[LayerSample], Sequence[Value] | None] = lambda sample: None


# fmt: off
LAYER_STATISTICS: tuple[LayerStatistic, ...] = (
    LayerStatistic("layer", "Layer", "number", "Decoder layer; dense layers leave gaps.", False,
        lambda s: s.layer.layer),
    LayerStatistic("experts", "Experts", "count", "Routed experts E of the layer.", True,
        lambda s: s.layer.experts),
    LayerStatistic("experts_per_token", "Per token", "count", "Experts K that each token chooses.", True,
        lambda s: s.layer.experts_per_token),
    LayerStatistic("max_violation", "Max violation", "ratio",
        "Busiest expert's load over the mean load, minus 1: 0 at balance, at most max_violation_limit.", False,
        lambda s: load.max_violation(s.counts)),
    LayerStatistic("max_violation_limit", "Max violation limit", "ratio",
        "The worst max violation that K distinct choices allow, E/K - 1.", True,
        lambda s: load.max_violation_limit(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("busiest_expert", "Busiest", "number", "The expert with the highest load.", True,
        lambda s: load.busiest_expert(s.counts)),
    LayerStatistic("min_violation", "Min violation", "ratio",
        "How far the least used expert falls short of the mean load: 0 at balance, 1 where it was never chosen.", True,
        lambda s: load.min_violation(s.counts)),
    LayerStatistic("cv", "CV", "ratio",
        "Population standard deviation of the load over its mean: cv_uniform for independent uniform choices.", True,
        lambda s: load.cv(s.counts)),
    LayerStatistic("cv_uniform", "CV, uniform", "ratio",
        "What cv would be if every token chose independently and uniformly.", True,
        lambda s: load.cv_uniform(s.layer.experts, s.layer.experts_per_token, s.tokens.total)),
    LayerStatistic("gini", "Gini", "ratio",
        "Gini coefficient of the load: 0 at balance, at most gini_limit.", True,
        lambda s: load.gini(s.counts)),
    LayerStatistic("gini_limit", "Gini limit", "ratio", "The worst Gini that K distinct choices allow, 1 - K/E.", True,
        lambda s: load.gini_limit(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("entropy", "Load entropy", "ratio",
        "Entropy of the load over ln E: 1 at balance, at least ln K / ln E.", False,
        lambda s: load.load_entropy(s.counts)),
    LayerStatistic("effective_experts", "Effective experts", "number",
        "Evenly used experts with the same load entropy: E at balance, at least K.", True,
        lambda s: load.effective_experts(s.counts)),
    LayerStatistic("dead", "Dead", "count",
        "Experts never chosen by enough tokens to put their utilization below 5 % with 95 % confidence.", False,
        lambda s: int((s.statuses == DEAD).sum())),
    LayerStatistic("unobserved", "Unobserved", "count",
        "Experts never chosen, by too few tokens to call them dead.", False,
        lambda s: int((s.statuses == UNOBSERVED).sum())),
    LayerStatistic("cold", "Cold", "count",
        "Experts used, but below a quarter of the mean load in every domain, with 95 % confidence.", True,
        lambda s: int((s.statuses == COLD).sum())),
    LayerStatistic("dropped_share", "Dropped", "share",
        "Choices that did not run, their expert being full; loads count them. Undefined without capacity.",
        True, lambda s: s.dropped_share),
    LayerStatistic("zero_compute_share", "Zero compute", "share",
        "Choices of experts that compute nothing; undefined where there are none.", True,
        lambda s: s.zero_compute_share),
    LayerStatistic("balance_loss", "Balance loss", "ratio",
        "Switch load-balancing loss E sum f P of this layer: 1 at balance.", False,
        lambda s: load.balance_loss(s.counts, s.probability)),
    LayerStatistic("balance_loss_hf", "Balance loss, transformers", "ratio",
        "The same without dividing by K, as transformers defines it: K at balance.", True,
        lambda s: load.balance_loss_hf([(s.counts, s.probability)], s.tokens.total)),
    LayerStatistic("z_loss", "Z loss", "number",
        "Mean squared logsumexp of the router's logits, softmax routers only: (ln E)^2 at zero logits.", True,
        lambda s: router.z_loss(s.scores, s.layer.scoring)),
    LayerStatistic("router_entropy", "Router entropy", "ratio",
        "Mean entropy of the router's distribution over ln E: 1 where it prefers nobody.", False,
        lambda s: router.router_entropy(s.scores, s.layer.experts)),
    LayerStatistic("top1_probability", "Top-1 probability", "share",
        "Mean of the largest router probability: at least 1/E.", True,
        lambda s: router.top1_probability(s.scores)),
    LayerStatistic("topk_mass", "Top-K mass", "share",
        "Mean router probability that the chosen hold together, where the weights tell it: at least K/E without a "
        "selection bias (with one, an upper bound).", True,
        lambda s: router.topk_mass(s.weight, s.scores, s.layer.scoring)),
    LayerStatistic("boundary_margin", "Boundary margin", "number",
        "Mean distance between the last chosen and the first refused score: near 0, rounding changes the choice.", True,
        lambda s: router.boundary_margin(s.scores)),
    LayerStatistic("first_repeat", "First repeat", "share",
        "Neighbouring tokens with the same first choice: compare with first_repeat_matched.", False,
        lambda s: locality.first_repeat(s.first, s.tokens.follows)),
    LayerStatistic("first_repeat_matched", "Repeat, matched", "share",
        "The same for independent tokens with these loads.", False,
        lambda s: locality.first_repeat_matched(s.first, s.layer.experts)),
    LayerStatistic("any_repeat", "Any repeat", "share",
        "Neighbouring tokens that share an expert: compare with any_repeat_matched.", True,
        lambda s: locality.any_repeat(s.sets, s.tokens.follows)),
    LayerStatistic("any_repeat_uniform", "Any repeat, uniform", "share",
        "The same for independent uniform choices, which flatters: real loads are never uniform.", True,
        lambda s: locality.any_repeat_uniform(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("any_repeat_matched", "Any repeat, matched", "share",
        "The same for the tokens of this layer in random order.", True,
        lambda s: locality.any_repeat_matched(s.sets, s.tokens.shuffle)),
    LayerStatistic("overlap", "Overlap", "share",
        "Share of a token's experts that the token before it chose too: compare with overlap_matched.", True,
        lambda s: locality.overlap(s.sets, s.tokens.follows, s.layer.experts_per_token)),
    LayerStatistic("overlap_uniform", "Overlap, uniform", "share",
        "The same for independent uniform choices, K/E.", True,
        lambda s: locality.overlap_uniform(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("overlap_matched", "Overlap, matched", "share",
        "The same for independent tokens with these loads.", True,
        lambda s: locality.overlap_matched(s.counts, s.tokens.total, s.layer.experts_per_token)),
    LayerStatistic("coactivation_max", "Co-activation max", "share",
        "Largest share of an expert's tokens that chose one other too: compare with coactivation_max_matched.", True,
        lambda s: coactivation.coactivation_max(s.pairs, s.counts)),
    LayerStatistic("coactivation_max_matched", "Co-activation max, matched", "share",
        "The same pair's share if the experts had no affinities but these loads and K.", True,
        lambda s: coactivation.coactivation_max_matched(s.pairs, s.expected_pairs, s.counts)),
    LayerStatistic("design_effect", "Design effect", "ratio",
        "Tokens that are worth one independent token, as documents repeat themselves: 1 for independent tokens.", True,
        lambda s: s.design_effect),
)

EXPERT_STATISTICS: tuple[ExpertStatistic, ...] = (
    ExpertStatistic("layer", "Layer", "number", "Decoder layer.", False,
        lambda s: [s.layer.layer] * s.layer.experts),
    ExpertStatistic("expert", "Expert", "number", "Expert id; ids of different layers have nothing in common.", False,
        lambda s: range(s.layer.experts)),
    ExpertStatistic("assignments", "Tokens", "count", "Tokens that chose the expert.", False,
        lambda s: _plain(s.counts)),
    ExpertStatistic("token_share", "Token share", "share", "Share of the tokens that chose it: K/E at balance.", False,
        lambda s: _plain(load.token_share(s.counts, s.tokens.total))),
    ExpertStatistic("slot_share", "Slot share", "share", "Share of all choices: 1/E at balance.", True,
        lambda s: _plain(load.slot_share(s.counts))),
    ExpertStatistic("weight_share", "Weight share", "share", "Share of the applied weight: 1/E at balance.", False,
        lambda s: _plain(s.weight_share)),
    ExpertStatistic("utilization", "Utilization", "ratio", "Load over the mean load: 1 at balance, at most E/K.", False,
        lambda s: _plain(load.utilization(s.counts))),
    ExpertStatistic("status", "Status", "text", "used, cold, unobserved (too few tokens to tell) or dead.", False,
        lambda s: _plain(s.statuses)),
)

PAIR_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("layer", "Layer", "number", "Decoder layer."),
    Quantity("expert", "Expert", "number", "The rarer expert i of the pair."),
    Quantity("other", "Other", "number", "Its partner j."),
    Quantity("tokens", "Tokens", "count", "N_ij, tokens that chose both."),
    Quantity("coactivation", "Co-activation", "share", "N_ij / N_i, share of the rarer expert's tokens."),
    Quantity("lift", "Lift", "ratio", "N_ij T / (N_i N_j): compare with lift_matched, not with 1."),
    Quantity("lift_matched", "Lift, matched", "ratio", "The same without affinities, at these loads and K."),
    Quantity("jaccard", "Jaccard", "share", "Tokens that chose both over tokens that chose either.", True),
    Quantity("deviate", "Deviate", "number", "Freeman-Tukey deviate from the null; it ranks and tests nothing.", True),
)
# fmt: on


def layer_row(sample: LayerSample) -> dict[str, Value]:
    """All layer statistics of one layer, by key."""
    return {statistic.key: _defined(statistic.compute(sample)) for statistic in LAYER_STATISTICS}


def expert_rows(sample: LayerSample) -> list[dict[str, Value]]:
    """All expert statistics, one row per expert."""
    missing: list[Value] = [None] * sample.layer.experts
    columns = {statistic.key: statistic.compute(sample) or missing for statistic in EXPERT_STATISTICS}
    return [dict(zip(columns, map(_defined, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def pair_rows(sample: LayerSample, top: int = PAIRS_PER_LAYER) -> list[dict[str, Value]]:
    """The strongest pairs of one layer, most surprising first."""
    columns = coactivation.strongest_pairs(sample.pairs, sample.expected_pairs, sample.counts, sample.tokens.total, top)
    rows = zip(*columns.values(), strict=True)
    return [{"layer": sample.layer.layer, **dict(zip(columns, row, strict=True))} for row in rows]


def _defined(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(values: Any) -> list[Value] | None:
    return None if values is None else list(values.tolist())
