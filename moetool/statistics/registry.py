"""Every routing statistic of a layer, one line each: key, heading, unit, help, function, baseline and attainable range.

The line makes the column of the table ``layers``, the keys ``mean_KEY`` and ``worst_KEY`` of the summary and of
``--fail-if``, the row of the table ``distribution`` and that of the README's glossary; a test demands a worked example.
A statistic whose arrays a trace lacks is None, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moetool.statistics import coactivation, documents, load, locality, paths, router, windows
from moetool.statistics.across import Worse
from moetool.statistics.documents import COLD, DEAD, UNOBSERVED
from moetool.statistics.sample import LayerSample

Value = str | int | float | None
Row = Mapping[str, Value]
Unit = Literal["text", "count", "share", "ratio", "number", "nats"]
Limits = tuple[float | None, float | None]
NEXT_LAG, SPAN = 1, windows.LAGS[-1]
"""Of the locality statistics that stand in the table of layers: neighbours, and windows of 32 tokens."""


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
    worse: Worse | None = None
    """Which end is the worst; None for what is not summarised over layers: names, limits and baselines."""
    baseline: Callable[[LayerSample, Row], Value] = lambda sample, row: None
    """What to compare with, from the layer and its other values."""
    limits: Callable[[LayerSample], Limits] = lambda sample: (0.0, None)
    """The attainable range; None is without end. Scores of a trace are float16, so what comes from them may be off it
    by a thousandth."""
    replicates: Callable[[LayerSample], NDArray[np.float64]] | None = None
    """``[R]`` values over groups drawn with replacement, for intervals; None where they are not given."""
    quadratic: bool = False
    """Noise adds to its square, so that the square is corrected for it; intervals only."""
    of_tokens: bool = False
    """Needs to know which token chose what, not only how many did."""


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
        lambda s: load.max_violation(s.counts),
        worse="high", baseline=lambda s, row: 0.0,
        limits=lambda s: (0.0, load.max_violation_limit(s.layer.experts, s.layer.experts_per_token)),
        replicates=lambda s: s.replicates(load.max_violation), quadratic=True),
    LayerStatistic("max_violation_limit", "Max violation limit", "ratio",
        "The worst max violation that K distinct choices allow, E/K - 1.", True,
        lambda s: load.max_violation_limit(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("batch_max_violation", "Batch max violation", "ratio",
        "Max violation within windows of 1,024 tokens, their mean: compare with batch_max_violation_matched.", True,
        lambda s: windows.batch_max_violation(s.chosen, s.layer.experts),
        worse="high", baseline=lambda s, row: row["batch_max_violation_matched"],
        limits=lambda s: (0.0, load.max_violation_limit(s.layer.experts, s.layer.experts_per_token)), of_tokens=True),
    LayerStatistic("batch_max_violation_matched", "Batch max violation, matched", "ratio",
        "The same for the tokens in random order: chance alone keeps it above 0.", True,
        lambda s: windows.batch_max_violation_matched(s.chosen, s.layer.experts, s.tokens.seed), of_tokens=True),
    LayerStatistic("busiest_expert", "Busiest", "number", "The expert with the highest load.", True,
        lambda s: load.busiest_expert(s.counts)),
    LayerStatistic("min_violation", "Min violation", "ratio",
        "How far the least used expert falls short of the mean load: 0 at balance, 1 where it was never chosen.", True,
        lambda s: load.min_violation(s.counts),
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (0.0, 1.0)),
    LayerStatistic("cv", "CV", "ratio",
        "Population standard deviation of the load over its mean: cv_uniform for independent uniform choices.", True,
        lambda s: load.cv(s.counts),
        worse="high", baseline=lambda s, row: row["cv_uniform"],
        limits=lambda s: (0.0, math.sqrt(load.max_violation_limit(s.layer.experts, s.layer.experts_per_token))),
        replicates=lambda s: s.replicates(load.cv), quadratic=True),
    LayerStatistic("cv_uniform", "CV, uniform", "ratio",
        "What cv would be if every token chose independently and uniformly.", True,
        lambda s: load.cv_uniform(s.layer.experts, s.layer.experts_per_token, s.tokens.total)),
    LayerStatistic("gini", "Gini", "ratio",
        "Gini coefficient of the load: 0 at balance, at most gini_limit.", True,
        lambda s: load.gini(s.counts),
        worse="high", baseline=lambda s, row: 0.0,
        limits=lambda s: (0.0, load.gini_limit(s.layer.experts, s.layer.experts_per_token)),
        replicates=lambda s: s.replicates(load.gini), quadratic=True),
    LayerStatistic("gini_limit", "Gini limit", "ratio", "The worst Gini that K distinct choices allow, 1 - K/E.", True,
        lambda s: load.gini_limit(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("entropy", "Load entropy", "ratio",
        "Entropy of the load over ln E: 1 at balance, at least ln K / ln E.", False,
        lambda s: load.load_entropy(s.counts),
        worse="low", baseline=lambda s, row: 1.0,
        limits=lambda s: (load.load_entropy_limit(s.layer.experts, s.layer.experts_per_token), 1.0),
        replicates=lambda s: s.replicates(load.load_entropy)),
    LayerStatistic("effective_experts", "Effective experts", "number",
        "Evenly used experts with the same load entropy: E at balance, at least K.", True,
        lambda s: load.effective_experts(s.counts),
        worse="low", baseline=lambda s, row: s.layer.experts,
        limits=lambda s: (s.layer.experts_per_token, s.layer.experts),
        replicates=lambda s: s.replicates(load.effective_experts)),
    LayerStatistic("dead", "Dead", "count",
        "Experts never chosen by enough tokens to put their utilization below 5 % with 95 % confidence.", False,
        lambda s: int((s.statuses == DEAD).sum()),
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (0.0, s.layer.experts - s.layer.experts_per_token)),
    LayerStatistic("unobserved", "Unobserved", "count",
        "Experts never chosen, by too few tokens to call them dead.", False,
        lambda s: int((s.statuses == UNOBSERVED).sum()),
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (0.0, s.layer.experts - s.layer.experts_per_token)),
    LayerStatistic("cold", "Cold", "count",
        "Experts used, but below a quarter of the mean load in every domain, with 95 % confidence.", True,
        lambda s: int((s.statuses == COLD).sum()),
        worse="high", baseline=lambda s, row: 0.0,
        limits=lambda s: (0.0, documents.cold_limit(s.layer.experts, s.layer.experts_per_token))),
    LayerStatistic("tokens_needed", "Tokens needed", "number",
        "Tokens of documents like these after which an expert that was never chosen counts as dead.", True,
        lambda s: documents.tokens_needed(s.design_effect, s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("least_assignments", "Least tokens", "count",
        "Tokens of the least used expert: what a calibration with these documents gives it.", True,
        lambda s: int(s.counts.min())),
    LayerStatistic("group_max_violation", "Group max violation", "ratio",
        "Busiest group of experts over the mean group, minus 1: 0 at balance; undefined for routers without groups.",
        True, lambda s: load.group_max_violation(s.counts, s.layer.expert_groups),
        worse="high", baseline=lambda s, row: 0.0,
        limits=lambda s: (0.0, load.group_max_violation_limit(
            s.layer.experts, s.layer.experts_per_token, s.layer.expert_groups))),
    LayerStatistic("dropped_share", "Dropped", "share",
        "Choices that did not run, their expert being full; loads count them. Undefined without capacity.",
        True, lambda s: s.dropped_share,
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (0.0, 1.0)),
    LayerStatistic("zero_compute_share", "Zero compute", "share",
        "Choices of experts that compute nothing; undefined where there are none.", True,
        lambda s: s.zero_compute_share,
        worse="high", baseline=lambda s, row: s.layer.zero_experts / s.layer.experts, limits=lambda s: (0.0, 1.0)),
    LayerStatistic("balance_loss", "Balance loss", "ratio",
        "Switch load-balancing loss E sum f P of this layer: 1 at balance.", False,
        lambda s: load.balance_loss(s.counts, s.probability),
        worse="high", baseline=lambda s, row: 1.0, limits=lambda s: (0.0, s.layer.experts / s.layer.experts_per_token)),
    LayerStatistic("balance_loss_hf", "Balance loss, transformers", "ratio",
        "The same without dividing by K, as transformers defines it: K at balance.", True,
        lambda s: load.balance_loss_hf([(s.counts, s.probability)], s.tokens.total),
        worse="high", baseline=lambda s, row: s.layer.experts_per_token, limits=lambda s: (0.0, s.layer.experts)),
    LayerStatistic("z_loss", "Z loss", "number",
        "Mean squared logsumexp of the router's logits, softmax routers only: (ln E)^2 at zero logits.", True,
        lambda s: router.z_loss(s.scores, s.layer.scoring),
        worse="high", baseline=lambda s, row: math.log(s.layer.experts) ** 2),
    LayerStatistic("router_entropy", "Router entropy", "ratio",
        "Mean entropy of the router's distribution over ln E: 1 where it prefers nobody.", False,
        lambda s: router.router_entropy(s.scores, s.layer.experts),
        worse="low", baseline=lambda s, row: 1.0, limits=lambda s: (0.0, 1.0),
        replicates=lambda s: s.mean_replicates(router.normalised_entropy(s.scores, s.layer.experts))),
    LayerStatistic("top1_probability", "Top-1 probability", "share",
        "Mean of the largest router probability: at least 1/E.", True,
        lambda s: router.top1_probability(s.scores),
        worse="high", baseline=lambda s, row: 1 / s.layer.experts,
        limits=lambda s: (1 / s.layer.experts, 1.0),
        replicates=lambda s: s.mean_replicates(None if s.scores is None else s.scores[:, router.TOP1])),
    LayerStatistic("topk_mass", "Top-K mass", "share",
        "Mean router probability that the chosen hold together, where the weights tell it: at least K/E without a "
        "selection bias (with one, an upper bound).", True,
        lambda s: router.topk_mass(s.weight, s.scores, s.layer.scoring),
        worse="low", baseline=lambda s, row: s.layer.experts_per_token / s.layer.experts,
        limits=lambda s: (s.layer.experts_per_token / s.layer.experts, 1.0)),
    LayerStatistic("boundary_margin", "Boundary margin", "number",
        "Mean distance between the last chosen and the first refused score: near 0, rounding changes the choice.", True,
        lambda s: router.boundary_margin(s.scores),
        worse="low", baseline=lambda s, row: 0.0),
    LayerStatistic("boundary_margin_p05", "Boundary margin, 5 %", "number",
        "The margin that 5 % of the tokens fall short of: their choice changes first.", True,
        lambda s: router.boundary_margin_p05(s.scores), worse="low", baseline=lambda s, row: 0.0),
    LayerStatistic("weight_concentration", "Weight concentration", "number",
        "Experts with equal weights that would mix as evenly as a token's: K if all weigh the same, 1 if one does.",
        True, lambda s: router.weight_concentration(s.weight),
        worse="low", baseline=lambda s, row: s.layer.experts_per_token,
        limits=lambda s: (1.0, s.layer.experts_per_token), of_tokens=True),
    LayerStatistic("bias_changed_share", "Changed by bias", "share",
        "Choices that the router's correction bias changed; undefined for routers without one.", True,
        lambda s: router.bias_changed_share(s.rerouted, s.layer.experts_per_token),
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (0.0, 1.0)),
    LayerStatistic("first_repeat", "First repeat", "share",
        "Neighbouring tokens with the same first choice: compare with first_repeat_matched.", False,
        lambda s: locality.first_repeat(s.first, s.tokens.follows),
        worse="high", baseline=lambda s, row: row["first_repeat_matched"], limits=lambda s: (0.0, 1.0),
        replicates=lambda s: s.mean_replicates(locality.repeats(s.first), s.tokens.follows), of_tokens=True),
    LayerStatistic("first_repeat_matched", "Repeat, matched", "share",
        "The same for independent tokens with these loads.", False,
        lambda s: locality.first_repeat_matched(s.first, s.layer.experts),
        of_tokens=True),
    LayerStatistic("any_repeat", "Any repeat", "share",
        "Neighbouring tokens that share an expert: compare with any_repeat_matched.", True,
        lambda s: locality.any_repeat(s.sets, s.tokens.follows),
        worse="high", baseline=lambda s, row: row["any_repeat_matched"], limits=lambda s: (0.0, 1.0), of_tokens=True),
    LayerStatistic("any_repeat_uniform", "Any repeat, uniform", "share",
        "The same for independent uniform choices, which flatters: real loads are never uniform.", True,
        lambda s: locality.any_repeat_uniform(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("any_repeat_matched", "Any repeat, matched", "share",
        "The same for the tokens of this layer in random order.", True,
        lambda s: locality.any_repeat_matched(s.sets, s.tokens.shuffle),
        of_tokens=True),
    LayerStatistic("overlap", "Overlap", "share",
        "Share of a token's experts that the token before it chose too: compare with overlap_matched.", True,
        lambda s: s.overlap[NEXT_LAG],
        worse="high", baseline=lambda s, row: row["overlap_matched"], limits=lambda s: (0.0, 1.0), of_tokens=True),
    LayerStatistic("overlap_uniform", "Overlap, uniform", "share",
        "The same for independent uniform choices, K/E.", True,
        lambda s: locality.overlap_uniform(s.layer.experts, s.layer.experts_per_token)),
    LayerStatistic("overlap_matched", "Overlap, matched", "share",
        "The same for independent tokens with these loads.", True,
        lambda s: s.overlap_matched),
    LayerStatistic("autocorrelation", "Autocorrelation", "number",
        "Correlation of the choices of neighbouring tokens, pooled over experts: 0 if unrelated, 1 if always the same.",
        True, lambda s: s.autocorrelation(NEXT_LAG),
        worse="high", baseline=lambda s, row: 0.0, limits=lambda s: (None, 1.0), of_tokens=True),
    LayerStatistic("distinct_experts", "Distinct in 32", "number",
        "Distinct experts that 32 neighbouring tokens choose: compare with distinct_experts_matched.", True,
        lambda s: s.distinct[SPAN],
        worse="high", baseline=lambda s, row: row["distinct_experts_matched"],
        limits=lambda s: (s.layer.experts_per_token, min(s.layer.experts, SPAN * s.layer.experts_per_token)),
        of_tokens=True),
    LayerStatistic("distinct_experts_uniform", "Distinct in 32, uniform", "number",
        "The same for independent uniform choices.", True,
        lambda s: windows.distinct_uniform(s.layer.experts, s.layer.experts_per_token, SPAN)),
    LayerStatistic("distinct_experts_matched", "Distinct in 32, matched", "number",
        "The same for independent tokens with these loads.", True,
        lambda s: windows.distinct_matched(s.counts, s.tokens.total, SPAN)),
    LayerStatistic("coactivation_max", "Co-activation max", "share",
        "Largest share of an expert's tokens (20 or more) that chose one other too: compare with "
        "coactivation_max_matched.", True,
        lambda s: coactivation.coactivation_max(s.pairs, s.counts),
        worse="high", baseline=lambda s, row: row["coactivation_max_matched"], limits=lambda s: (0.0, 1.0),
        of_tokens=True),
    LayerStatistic("coactivation_max_matched", "Co-activation max, matched", "share",
        "The same pair's share if the experts had no affinities but these loads and K.", True,
        lambda s: coactivation.coactivation_max_matched(s.pairs, s.expected_pairs, s.counts),
        of_tokens=True),
    LayerStatistic("path_information", "Path information", "ratio",
        "Normalised mutual information of an expert of the MoE layer before and one here, over all pairs of a token: "
        "compare with path_information_matched; 1 only for K = 1.", True,
        lambda s: None if s.flows is None else paths.path_information(s.flows),
        worse="high", baseline=lambda s, row: row["path_information_matched"], limits=lambda s: (0.0, 1.0),
        of_tokens=True),
    LayerStatistic("path_information_matched", "Path information, matched", "ratio",
        "The same for tokens whose two choices are paired at random.", True,
        lambda s: s.path_information_matched, of_tokens=True),
    LayerStatistic("design_effect", "Design effect", "ratio",
        "Tokens that are worth one independent token, as documents and domains repeat themselves: 1 for independent "
        "tokens; of the experts the 90th percentile.", True,
        lambda s: s.design_effect,
        worse="high", baseline=lambda s, row: 1.0, limits=lambda s: (1.0, None)),
)
# fmt: on


def layer_row(sample: LayerSample) -> dict[str, Value]:
    """All layer statistics of one layer, by key."""
    known = [item for item in LAYER_STATISTICS if not (item.of_tokens and sample.tokens.load_only)]
    row: dict[str, Value] = {statistic.key: None for statistic in LAYER_STATISTICS}
    return row | {statistic.key: defined(statistic.compute(sample)) for statistic in known}


def defined(value: Value) -> Value:
    """The value, or None for what is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
