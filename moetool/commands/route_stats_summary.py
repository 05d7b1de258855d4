"""From layers to the summary of ``route-stats``: rows of layers enter, summary, distribution and intervals leave.

Layers are summarised by mean, worst and percentiles over those that have the value: expert ids of layers are unrelated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moetool.report.report import Column, Table, Value
from moetool.report.values import number_of
from moetool.statistics import across
from moetool.statistics.registry import LAYER_STATISTICS, LayerStatistic, Unit, layer_row
from moetool.statistics.sample import LayerSample

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.statistics.sample import CountedTokens

Row = Mapping[str, Value]

SUMMARISED = tuple(statistic for statistic in LAYER_STATISTICS if statistic.worse is not None)
SPANS = tuple(statistic for statistic in SUMMARISED if statistic.replicates is not None)

COUNTS = (
    Column("tokens", "Tokens", "count", help="Counted tokens: special tokens and masked templates are left out."),
    Column("documents", "Documents", "count", help="Input sequences."),
    Column("groups", "Groups", "count", help="Independent groups of documents with counted tokens."),
    Column("domains", "Domains", "count", help="Domains of the documents."),
    Column("moe_layers", "MoE layers", "count", help="Layers with routed experts."),
    Column("dead_experts", "Dead experts", "count", help="Never chosen, and surely below 5 % of the mean load."),
    Column(
        "unobserved_experts", "Unobserved experts", "count", help="Never chosen, by too few tokens to call them dead."
    ),
    Column("cold_experts", "Cold experts", "count", help="Surely below a quarter of the mean load in every domain."),
)


@dataclass(frozen=True, slots=True)
class Named:
    """A number of the summary that has a name of its own, and the ``mean_KEY`` or ``worst_KEY`` that it is."""

    column: Column
    source: str


# fmt: off
NAMED = (
    Named(Column("max_violation", "Max violation", "ratio",
        help="Of the worst layer: busiest load over mean load, minus 1."), "worst_max_violation"),
    Named(Column("load_entropy", "Load entropy", "ratio", help="Mean over layers, over ln E: 1 at balance."),
        "mean_entropy"),
    Named(Column("gini", "Gini", "ratio", help="Mean over layers: 0 at balance."), "mean_gini"),
    Named(Column("router_entropy", "Router entropy", "ratio",
        help="Mean over layers, over ln E: 1 where it prefers nobody."), "mean_router_entropy"),
    Named(Column("balance_loss", "Balance loss", "ratio", help="Mean over layers of E sum f P: 1 at balance."),
        "mean_balance_loss"),
    Named(Column("z_loss", "Z loss", "number", True, "Mean over layers, softmax routers: (ln E)^2 at zero logits."),
        "mean_z_loss"),
    Named(Column("dropped_share", "Dropped", "share", True,
        "Mean over layers with a capacity: choices that did not run, their expert being full."), "mean_dropped_share"),
    Named(Column("zero_compute_share", "Zero compute", "share", True,
        "Mean over layers that have them: choices of experts that compute nothing."), "mean_zero_compute_share"),
    Named(Column("repeat_rate", "Repeat rate", "share",
        help="Neighbouring tokens with the same first choice, mean over layers."), "mean_first_repeat"),
    Named(Column("coactivation_max", "Co-activation max", "share", help="The largest N_ij / N_i of all layers."),
        "worst_coactivation_max"),
    Named(Column("design_effect", "Design effect", "ratio",
        help="Tokens worth one independent token, in the worst layer."), "worst_design_effect"),
)
# fmt: on
OWN = (
    Column("worst_layer", "Worst layer", "number", help="The layer of that max violation."),
    Column(
        "balance_loss_hf",
        "Balance loss, transformers",
        "ratio",
        detail=True,
        help="As transformers computes it, layers pooled: K at balance; it hides imbalance.",
    ),
    Column("repeat_rate_matched", "Repeat rate, matched", "share", help="The same for independent tokens, same loads."),
)
SHOWN = (
    "max_violation", "worst_layer", "mean_max_violation", "load_entropy", "gini", "router_entropy", "balance_loss",
    "balance_loss_hf", "z_loss", "dropped_share", "zero_compute_share", "repeat_rate", "repeat_rate_matched",
    "coactivation_max", "design_effect",
)  # fmt: skip
"""Order of the summary, before the keys that every statistic has."""


def _of_unit(key: str, title: str, help: str, detail: bool = False) -> Column:
    """A column whose rows are measured in what their column ``unit`` says."""
    return Column(key, title, "number", detail, help, unit_from="unit")


DISTRIBUTION_COLUMNS = (
    Column("statistic", "Statistic", "text", help="A column of the table of layers."),
    Column("unit", "Unit", "text", True, help="What it is measured in."),
    _of_unit("mean", "Mean", "Over the layers that have it."),
    _of_unit("baseline", "Baseline", "What to compare the mean with: balanced, independent or unrelated choices."),
    _of_unit("worst", "Worst", "The least favourable layer's value, at the end that the column worse names."),
    Column("worse", "Worse", "text", True, help="Which end is the worst: high or low."),
    Column("worst_layer", "In layer", "number", help="Its layer; empty where all layers have the same."),
    *(
        _of_unit(f"p{percent}", f"{percent} %", f"{percent} % of the layers are below.")
        for percent in across.PERCENTILES
    ),
    _of_unit("least", "Least", "The least value that a layer can have.", detail=True),
    _of_unit("most", "Most", "The greatest value that a layer can have; empty: no limit.", detail=True),
)
INTERVAL_COLUMNS = (
    Column("key", "Number", "text", help="A key of the summary."),
    Column("unit", "Unit", "text", True, help="What it is measured in."),
    _of_unit("value", "Value", "As in the summary."),
    _of_unit("low", "Low", "Lower end of the 95 % interval: other documents of this kind."),
    _of_unit("high", "High", "Upper end."),
)


def summary_columns() -> tuple[Column, ...]:
    """Every key of the summary, in order."""
    generated = []
    for statistic in SUMMARISED:
        unit = _unit(statistic)
        worst = "highest" if statistic.worse == "high" else "lowest"
        help = f"of layers.{statistic.key} over the layers."
        generated += [
            Column(f"mean_{statistic.key}", f"{statistic.title}, mean", unit, True, f"Mean {help}"),
            Column(f"worst_{statistic.key}", f"{statistic.title}, worst", unit, True, f"The {worst} {help}"),
        ]
    known = {column.key: column for column in (*(named.column for named in NAMED), *OWN, *generated)}
    known["mean_max_violation"] = Column(
        "mean_max_violation", "Max violation, mean", "ratio", help="Mean over layers: 0 at balance."
    )
    first = [known.pop(key) for key in SHOWN]
    return (*COUNTS, *first, *known.values())


@dataclass(frozen=True, slots=True)
class LayerResult:
    """All statistics of one layer, what they are compared with, and the ranges they can be in."""

    row: Row
    baselines: Mapping[str, Value]
    limits: Mapping[str, tuple[float | None, float | None]]
    replicates: Mapping[str, NDArray[np.float64]]
    """``[R]`` per statistic with intervals; empty where there are too few documents for them."""


def layer_result(sample: LayerSample, intervals: bool) -> LayerResult:
    """Compute the statistics of a layer."""
    row = layer_row(sample)
    present = [statistic for statistic in SUMMARISED if row[statistic.key] is not None]
    return LayerResult(
        row,
        {statistic.key: statistic.baseline(sample, row) for statistic in present},
        {statistic.key: statistic.limits(sample) for statistic in present},
        {item.key: item.replicates(sample) for item in present if item.replicates and intervals},
    )


@dataclass(frozen=True, slots=True)
class LayerResults:
    """The results of all layers."""

    layers: Sequence[LayerResult]

    @property
    def rows(self) -> list[Row]:
        """Those of the table of layers."""
        return [layer.row for layer in self.layers]

    def spread(self, statistic: LayerStatistic) -> across.Spread | None:
        """A statistic over the layers that have it."""
        values = [number_of(row[statistic.key]) for row in self.rows]
        layers = [int(number_of(row["layer"]) or 0) for row in self.rows]
        assert statistic.worse is not None
        return across.spread(layers, values, statistic.worse)

    def attainable(self, key: str, worst: bool = False) -> tuple[float | None, float | None]:
        """Ends of the attainable range: of the mean over layers, or of their ``worst``."""
        known = [layer.limits[key] for layer in self.layers if key in layer.limits]
        lows, highs = [low for low, _ in known if low is not None], [high for _, high in known if high is not None]
        of = (min, max) if worst else (_average, _average)
        return (
            of[0](lows) if lows and len(lows) == len(known) else None,
            of[1](highs) if highs and len(highs) == len(known) else None,
        )


def summarise(
    trace: RoutingTrace, tokens: CountedTokens, results: LayerResults, pooled_loss: float | None
) -> dict[str, Value]:
    """The summary, every key of ``summary_columns``."""
    spreads = {statistic.key: results.spread(statistic) for statistic in SUMMARISED}
    values: dict[str, Value] = {}
    for key, found in spreads.items():
        values[f"mean_{key}"] = None if found is None else found.mean
        values[f"worst_{key}"] = None if found is None else found.worst
    values |= {named.column.key: values[named.source] for named in NAMED}
    totals = {key: sum(int(number_of(row[key]) or 0) for row in results.rows) for key in ("dead", "unobserved", "cold")}
    worst = spreads["max_violation"]
    values |= {
        "tokens": tokens.total,
        "documents": len(trace.documents),
        "groups": len(tokens.group_tokens),
        "domains": len(trace.domains),
        "moe_layers": len(results.rows),
        **{f"{status}_experts": total for status, total in totals.items()},
        "worst_layer": None if worst is None else worst.worst_layer,
        "balance_loss_hf": pooled_loss,
        "repeat_rate_matched": _mean_of(results.rows, "first_repeat_matched"),
    }
    return {column.key: values[column.key] for column in summary_columns()}


def distribution(results: LayerResults) -> Table:
    """Mean, baseline, worst and percentiles over layers of every statistic."""
    rows: list[Row] = []
    for statistic in SUMMARISED:
        found = results.spread(statistic)
        if found is None:
            continue
        low, high = results.attainable(statistic.key, worst=True)
        rows.append(
            {
                "statistic": statistic.key,
                "unit": _unit(statistic),
                "mean": found.mean,
                "baseline": _mean_of([layer.baselines for layer in results.layers], statistic.key),
                "worst": found.worst,
                "worse": statistic.worse,
                "worst_layer": None if found.worst == found.best else found.worst_layer,
                **{f"p{at}": value for at, value in zip(across.PERCENTILES, found.percentiles, strict=True)},
                "least": low,
                "most": high,
            }
        )
    note = "Every statistic over the layers; the baseline is what independent, balanced or unrelated choices give."
    return Table("distribution", "All layers together", DISTRIBUTION_COLUMNS, tuple(rows), note)


def intervals(results: LayerResults, summary: Row) -> Table:
    """How far the summary of other documents of this kind would be from this one."""
    rows: list[Row] = []
    groups = int(number_of(summary["groups"]) or 0)
    for key, name in ({f"mean_{statistic.key}": statistic.key for statistic in SPANS} | _WORST).items():
        drawn = [layer.replicates[name] for layer in results.layers if name in layer.replicates]
        value = summary[key]
        if not drawn or not isinstance(value, float):
            continue
        stacked = np.stack(drawn)
        pooled = stacked.max(axis=0) if key in _WORST else stacked.mean(axis=0)
        low, high = results.attainable(name, worst=key in _WORST)
        limits = (-np.inf if low is None else low, np.inf if high is None else high)
        statistic = next(one for one in SPANS if one.key == name)
        ends = across.interval(value, pooled, groups, limits, statistic.quadratic)
        if ends is not None:
            unit = _unit(statistic)
            rows.append({"key": key, "unit": unit, "value": value, "low": ends[0], "high": ends[1]})
    note = (
        "95 % intervals, drawing groups of documents again within each domain: they tell of documents, not of models."
    )
    return Table("intervals", "How sure", INTERVAL_COLUMNS, tuple(rows), note, optional=True)


_WORST = {"max_violation": "max_violation"}
"""Summary keys that are the highest of the layers, by statistic."""


def _unit(statistic: LayerStatistic) -> Unit:
    """That of a mean: a mean of counts is no count."""
    return "number" if statistic.unit == "count" else statistic.unit


def _mean_of(rows: Sequence[Row], key: str) -> float | None:
    return _mean([value for row in rows if (value := number_of(row.get(key))) is not None])


def _mean(values: Sequence[float]) -> float | None:
    return _average(values) if values else None


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
