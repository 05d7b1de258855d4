"""Tables with several rows per layer: a LayerSample enters, rows of experts, pairs, quantiles, lags and paths leave.

A table is its quantities and one function; ``LAYER_TABLES`` is where a new one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moetool.statistics import coactivation, load, paths, router, windows
from moetool.statistics.registry import Quantity, Value, defined
from moetool.statistics.sample import LayerSample

Rows = list[dict[str, Value]]
PAIRS_PER_LAYER = 10
FLOWS_PER_LAYER = 10


@dataclass(frozen=True, slots=True)
class ExpertStatistic(Quantity):
    """One value per expert of a layer; None stands for E times None."""

    compute: Callable[[LayerSample], Sequence[Value] | None] = lambda sample: None


@dataclass(frozen=True, slots=True)
class LayerTable:
    """A table of the report, its quantities and the rows of one layer."""

    key: str
    title: str
    quantities: Sequence[Quantity]
    rows: Callable[[LayerSample], Rows]
    note: str = ""
    order: str = ""
    """The rows of all layers are sorted by this key, the largest first."""
    text_rows: int | None = None
    """How many of them the terminal shows; None: all or, where they are many, none."""


# fmt: off
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

QUANTILE_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("layer", "Layer", "number", "Decoder layer."),
    Quantity("quantity", "Quantity", "text", "Name of a column of the table of layers: there is its mean."),
    *(Quantity(f"p{100 * level:02.0f}", f"{100 * level:.0f} %", "number",
        f"{100 * level:.0f} % of the tokens are below.") for level in router.QUANTILES),
)

LAG_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("layer", "Layer", "number", "Decoder layer."),
    Quantity("lag", "Tokens", "count", "Distance of two tokens, and length of the window."),
    Quantity("overlap", "Overlap", "share",
        "Share of a token's experts that the token so far before it chose too: compare with overlap_matched."),
    Quantity("overlap_matched", "Overlap, matched", "share", "The same for independent tokens with these loads.", True),
    Quantity("autocorrelation", "Autocorrelation", "number", "0 if tokens so far apart are unrelated, 1 if the same."),
    Quantity("distinct_experts", "Distinct experts", "number", "Experts that a window of so many tokens chooses."),
    Quantity("distinct_experts_uniform", "Distinct, uniform", "number",
        "The same for independent uniform choices.", True),
    Quantity("distinct_experts_matched", "Distinct, matched", "number",
        "The same for independent tokens with these loads."),
)

FLOW_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("layer", "Layer", "number", "Decoder layer."),
    Quantity("next_layer", "Next", "number", "The next MoE layer of the trace."),
    Quantity("expert", "Expert", "number", "An expert of the layer."),
    Quantity("next_expert", "Next expert", "number", "An expert of the next layer."),
    Quantity("tokens", "Tokens", "count", "Tokens that chose both."),
    Quantity("share", "Share", "share", "Of the expert's tokens, those that choose the next expert."),
    Quantity("share_matched", "Share, matched", "share", "The same if the next choice did not depend on this one."),
)

GROUP_QUANTITIES: tuple[Quantity, ...] = (
    Quantity("layer", "Layer", "number", "Decoder layer."),
    Quantity("group", "Group", "number", "Group of neighbouring experts, counted from 0."),
    Quantity("assignments", "Choices", "count", "Choices that fell into the group."),
    Quantity("slot_share", "Share", "share", "Of all choices: 1 over the number of groups at balance."),
)
# fmt: on


def expert_rows(sample: LayerSample) -> Rows:
    """All expert statistics, one row per expert."""
    missing: list[Value] = [None] * sample.layer.experts
    columns = {statistic.key: statistic.compute(sample) or missing for statistic in EXPERT_STATISTICS}
    return [dict(zip(columns, map(defined, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def pair_rows(sample: LayerSample) -> Rows:
    """The strongest pairs of one layer, most surprising first."""
    if sample.tokens.load_only:
        return []
    columns = coactivation.strongest_pairs(
        sample.pairs, sample.expected_pairs, sample.counts, sample.tokens.total, PAIRS_PER_LAYER
    )
    return _rows({"layer": sample.layer.layer}, columns)


def quantile_rows(sample: LayerSample) -> Rows:
    """Quantiles over tokens of what the router says."""
    if sample.scores is None:
        return []
    known = {
        "router_entropy": router.normalised_entropy(sample.scores, sample.layer.experts),
        "top1_probability": sample.scores[:, router.TOP1],
        "boundary_margin": sample.scores[:, router.MARGIN],
    }
    rows: Rows = []
    for name, values in known.items():
        found = router.quantiles(values)
        if found is not None:
            named = zip([quantity.key for quantity in QUANTILE_QUANTITIES[2:]], found, strict=True)
            rows.append({"layer": sample.layer.layer, "quantity": name, **dict(named)})
    return rows


def lag_rows(sample: LayerSample) -> Rows:
    """Locality at growing distances."""
    if sample.tokens.load_only:
        return []
    layer, tokens = sample.layer, sample.tokens.total
    return [
        {
            "layer": layer.layer,
            "lag": lag,
            "overlap": sample.overlap[lag],
            "overlap_matched": sample.overlap_matched,
            "autocorrelation": sample.autocorrelation(lag),
            "distinct_experts": sample.distinct[lag],
            "distinct_experts_uniform": windows.distinct_uniform(layer.experts, layer.experts_per_token, lag),
            "distinct_experts_matched": windows.distinct_matched(sample.counts, tokens, lag),
        }
        for lag in windows.LAGS
    ]


def flow_rows(sample: LayerSample) -> Rows:
    """The largest flows from the MoE layer before."""
    if sample.flows is None or sample.before is None or sample.tokens.load_only:
        return []
    before = sample.before[0]
    columns = paths.strongest_flows(
        sample.flows, before.experts_per_token, sample.layer.experts_per_token, FLOWS_PER_LAYER
    )
    return _rows({"layer": before.layer, "next_layer": sample.layer.layer}, columns)


def group_rows(sample: LayerSample) -> Rows:
    """Loads of the groups of a group-limited router."""
    groups = sample.layer.expert_groups
    if not groups:
        return []
    loads = load.group_loads(sample.counts, groups)
    columns = {"group": range(groups), "assignments": loads.tolist(), "slot_share": load.slot_share(loads).tolist()}
    return _rows({"layer": sample.layer.layer}, columns)


LAYER_TABLES: tuple[LayerTable, ...] = (
    LayerTable(
        "coactivation",
        "Experts that are chosen together",
        PAIR_QUANTITIES,
        pair_rows,
        "Pairs that co-occur more than their loads explain, the most surprising first.",
        order="deviate",
        text_rows=10,
    ),
    LayerTable(
        "paths",
        "Paths from layer to layer",
        FLOW_QUANTITIES,
        flow_rows,
        "The largest flows between experts of neighbouring MoE layers; compare the share with the matched one.",
        order="tokens",
        text_rows=10,
    ),
    LayerTable("router", "Router, quantiles over tokens", QUANTILE_QUANTITIES, quantile_rows),
    LayerTable(
        "locality",
        "Locality by distance",
        LAG_QUANTITIES,
        lag_rows,
        "How much tokens of one document have in common, and how many experts a window of tokens needs.",
    ),
    LayerTable("groups", "Groups of experts", GROUP_QUANTITIES, group_rows, text_rows=8),
    LayerTable("experts", "Experts", EXPERT_STATISTICS, expert_rows),
)


def _rows(same: dict[str, Value], columns: dict[str, Any]) -> Rows:
    return [{**same, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]


def _plain(values: Any) -> list[Value] | None:
    return None if values is None else list(values.tolist())
