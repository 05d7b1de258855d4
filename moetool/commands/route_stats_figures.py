"""The pictures of ``route-stats``: rows of its tables and pair counts enter, Figures leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from moetool.report.report import Figure, Panel, Value
from moetool.report.values import as_number

if TYPE_CHECKING:
    from moetool.statistics.sample import LayerSample

Row = Mapping[str, Value]

POINTS = 101
"""Of a load curve, a percent of the experts apart."""
NAMED_LAYERS = 5
MOST_DOUBLINGS = 3
"""Of co-activation over its baseline: pairs that never occur would leave no colour for the others."""


def draw(
    layers: Sequence[Row], experts: Sequence[Row], pairs: Sequence[Panel], flows: Sequence[Panel]
) -> tuple[Figure, ...]:
    """All figures that there are values for; ``pairs`` and ``flows`` are the panels of the functions below."""
    usage = {
        layer: [as_number(row["utilization"]) for row in rows]
        for layer, rows in groupby(experts, lambda row: row["layer"])
    }
    figures = [_usage(usage), _load_map(usage), _load_curve(usage), _repeats(layers), _entropy(layers)]
    if pairs:
        figures.append(_coactivation(pairs))
    if flows:
        figures.append(_paths(flows))
    return tuple(figure for figure in figures if figure is not None)


def pair_panel(sample: LayerSample) -> Panel | None:
    """Co-activation of all pairs of a layer: log2 of N_ij over what the loads explain; None for K = 1."""
    if sample.layer.experts_per_token < 2 or sample.tokens.load_only or not sample.pairs.any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.log2((sample.pairs + 0.5) / (sample.expected_pairs + 0.5)).clip(-MOST_DOUBLINGS, MOST_DOUBLINGS)
    np.fill_diagonal(lift, np.nan)
    lift[sample.counts == 0] = lift[:, sample.counts == 0] = np.nan
    names = tuple(str(expert) for expert in range(sample.layer.experts))
    rows = (tuple(None if np.isnan(value) else float(value) for value in row) for row in lift)
    return Panel(f"layer {sample.layer.layer}", names, tuple(zip(names, rows, strict=True)))


def flow_panel(sample: LayerSample) -> Panel | None:
    """Tokens by expert of the MoE layer before and of this one; None for the first layer."""
    if sample.flows is None or sample.before is None or sample.tokens.load_only or not sample.tokens.total:
        return None
    before = sample.before[0]
    names = tuple(str(expert) for expert in range(sample.layer.experts))
    rows = ((str(expert), tuple(row)) for expert, row in enumerate(sample.flows.tolist()))
    return Panel(f"layer {before.layer} to {sample.layer.layer}", names, tuple(rows))


def _usage(usage: Mapping[Value, Sequence[float]]) -> Figure:
    panels = []
    for layer, values in usage.items():
        labels = tuple(str(expert) for expert in range(len(values)))
        panels.append(Panel(f"layer {layer}", labels, (("utilization", tuple(values)),), reference=1.0))
    return Figure(
        key="expert_usage",
        title="Expert usage per layer: load over the mean load, 1 is uniform",
        kind="bars",
        alt="Load of every expert over the mean load of its layer, one panel per MoE layer; 1 is perfect balance.",
        panels=tuple(panels),
        x_title="expert",
        y_title="utilization",
        in_text=True,
    )


def _load_map(usage: Mapping[Value, Sequence[float]]) -> Figure:
    width = max(len(values) for values in usage.values())
    rows = []
    for layer, values in usage.items():
        ordered: list[float | None] = [*sorted(values, reverse=True), *([None] * (width - len(values)))]
        rows.append((f"layer {layer}", tuple(ordered)))
    ranks = tuple(str(rank) for rank in range(1, width + 1))
    return Figure(
        key="load_map",
        title="Load by layer, experts ordered by use: load over the mean load",
        kind="heatmap",
        alt="A row per MoE layer, a column per rank of an expert in its layer; the colour is load over mean load.",
        panels=(Panel("", ranks, tuple(rows), reference=1.0),),
        x_title="rank of the expert",
        y_title="utilization",
    )


def _load_curve(usage: Mapping[Value, Sequence[float]]) -> Figure:
    shares = np.linspace(0, 1, POINTS)
    curves: dict[Value, tuple[float, ...]] = {}
    for layer, values in usage.items():
        ordered = np.sort(np.asarray(values))[::-1]
        total = ordered.sum() or 1.0
        cumulative = np.concatenate([[0.0], np.cumsum(ordered) / total])
        curves[layer] = tuple(np.interp(shares, np.linspace(0, 1, len(cumulative)), cumulative).tolist())
    ranked = sorted(curves, key=lambda layer: -sum(curves[layer]))
    if len(ranked) > NAMED_LAYERS:
        places = np.linspace(0, len(ranked) - 1, NAMED_LAYERS).round().astype(int)
        ranked = [ranked[place] for place in places]
    series = [(f"layer {layer}", curves[layer]) for layer in ranked]
    series.append(("uniform", tuple(shares.tolist())))
    return Figure(
        key="load_curve",
        title="Load curve: the share of all choices that the most used experts take",
        kind="lines",
        alt="Cumulative share of the load against the share of experts, busiest first, for layers from the least to "
        "the most balanced; balance is the straight line.",
        panels=(Panel("", tuple(f"{100 * share:.0f}" for share in shares), tuple(series)),),
        x_title="experts, % (busiest first)",
        y_title="share of the load",
    )


def _repeats(layers: Sequence[Row]) -> Figure | None:
    named = {
        "first_repeat": "first choice",
        "first_repeat_matched": "first, matched",
        "any_repeat": "any of K",
        "any_repeat_matched": "any, matched",
        "any_repeat_uniform": "any, uniform",
    }
    return _by_layer(
        layers,
        named,
        "repeat_rates",
        "Neighbouring tokens: repeats by layer, beside unrelated tokens with the same loads",
        "Share of neighbouring tokens with the same first choice, and with any expert in common, by layer, beside the "
        "load-matched and the uniform baseline.",
        "share of neighbours",
    )


def _entropy(layers: Sequence[Row]) -> Figure | None:
    named = {"router_entropy": "router entropy", "top1_probability": "top-1 probability", "entropy": "load entropy"}
    found = {key: name for key, name in named.items() if key == "entropy" or _has(layers, key)}
    if len(found) < 2:
        return None
    return _by_layer(
        layers,
        found,
        "router_entropy",
        "Router entropy by layer: how undecided it is, beside how even the load is",
        "Normalised entropy of the router's distribution, its largest probability and the normalised entropy of the "
        "load, by layer.",
        "share",
    )


def _by_layer(
    layers: Sequence[Row], named: Mapping[str, str], key: str, title: str, alt: str, unit: str
) -> Figure | None:
    known = {column: name for column, name in named.items() if _has(layers, column)}
    if not _has(layers, next(iter(named))):
        return None
    series = tuple(
        (name, tuple(float(value) if isinstance(value := row[column], int | float) else None for row in layers))
        for column, name in known.items()
    )
    names = tuple(str(row["layer"]) for row in layers)
    return Figure(key, title, "lines", alt, (Panel("", names, series),), "layer", unit)


def _coactivation(panels: Sequence[Panel]) -> Figure:
    return Figure(
        key="coactivation",
        title="Co-activation over what the loads explain, in doublings (cut at 8 times and an eighth)",
        kind="heatmap",
        alt="A map per layer, expert by expert: above 0 pairs that are chosen together more than their loads explain.",
        panels=tuple(panels),
        x_title="expert",
        y_title="doublings",
    )


def _paths(panels: Sequence[Panel]) -> Figure:
    return Figure(
        key="paths",
        title="Paths: tokens that go from an expert to an expert of the next MoE layer",
        kind="flows",
        alt="For every pair of neighbouring MoE layers, the largest flows of tokens from an expert to the next.",
        panels=tuple(panels),
        x_title="expert, and expert of the next layer",
        y_title="tokens",
    )


def _has(layers: Sequence[Row], key: str) -> bool:
    return any(row[key] is not None for row in layers)
