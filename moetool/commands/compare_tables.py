"""The numbers of ``compare`` for two traces: paired traces enter, summary and rows of its tables leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.commands.compare_columns import EXPERT_COLUMNS, MARGIN_COLUMNS, RATIOS
from moetool.progress import Progress
from moetool.report.report import Value
from moetool.report.values import number_of
from moetool.statistics import across
from moetool.statistics.agreement import (
    AGREEMENT_STATISTICS,
    LayerAgreement,
    Margins,
    compare_layers,
    influence,
    members_of,
    standard_error,
)
from moetool.statistics.agreement_loads import SIGNIFICANT, LoadShift, excess_shift, load_shift, shift_p_values
from moetool.statistics.parallel import map_in_order
from moetool.statistics.proportions import score_interval
from moetool.statistics.registry import defined
from moetool.statistics.sample import CountedTokens, LayerSample, count_tokens, sample_layers

Row = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """What the report has of one layer."""

    row: Row
    by_domain: Mapping[str, NDArray[np.float64]]
    """``[D]`` per statistic."""
    influences: Mapping[str, NDArray[np.float64]]
    """``[G]`` of each of RATIOS, on the value of the layer."""
    domain_influence: NDArray[np.float64]
    """``[G]`` on the agreement of the group's own domain."""
    experts: Sequence[Row]
    """Those of the table, but for their p values."""
    shift: LoadShift | None
    margins: Sequence[Row]
    same: NDArray[np.bool_]
    """``[N]`` tokens that chose the same set."""
    identical: bool | None
    """None where weights are known in one trace only."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two traces, compared in every layer."""

    trace: RoutingTrace
    """A, with the special tokens of both."""
    tokens: CountedTokens
    layers: Sequence[ComparedLayer]
    same_tokens: float | None
    """Share of the tokens that chose the same experts in every layer."""

    @property
    def rows(self) -> list[Row]:
        """Those of the table of layers."""
        return [layer.row for layer in self.layers]

    def expert_rows(self) -> Iterator[Row]:
        """Those of the table of experts, layer by layer."""
        p_values = shift_p_values([layer.shift for layer in self.layers])
        for layer, found in zip(self.layers, p_values, strict=True):
            for row in layer.experts:
                yield {**row, "p_value": None if found is None else float(found[int(str(row["expert"]))])}


def compare_traces(first: RoutingTrace, second: RoutingTrace, progress: Progress) -> Comparison:
    """Compare two traces that ``pair_traces`` let pass, one layer of both at a time."""
    tokens = count_tokens(first)
    members = members_of(tokens, len(first.domains))
    sure = across.has_intervals(tokens.group_domain)

    def study(pair: tuple[LayerSample, LayerSample]) -> ComparedLayer:
        compared = _study(compare_layers(*pair), tokens, members, sure)
        for sample in pair:
            sample.release()
        return compared

    layers: list[ComparedLayer] = []
    same = np.ones(tokens.total, bool)
    pairs = zip(sample_layers(first, tokens), sample_layers(second, tokens), strict=True)
    with progress.step("Comparing routing", len(first.layers)) as advance:
        for layer in map_in_order(study, pairs):
            same &= layer.same
            layers.append(layer)
            advance(1)
    return Comparison(first, tokens, layers, float(same.mean()) if tokens.total else None)


def _study(found: LayerAgreement, tokens: CountedTokens, members: NDArray[np.float64], sure: bool) -> ComparedLayer:
    groups, layer = found.groups, found.layer
    whole, domains = groups.add_up(np.ones((1, len(groups.tokens)))), groups.add_up(members)
    parts = {s.key: s.parts(groups) for s in RATIOS if s.parts is not None}
    influences = {key: influence(*sums) for key, sums in parts.items()}
    agreement = AGREEMENT_STATISTICS[0]
    shared, choices = (float(sums.sum()) for sums in parts[agreement.key])
    value = float(agreement.value(whole)[0])
    low, high = _ends(value, influences[agreement.key], tokens.group_domain, sure, choices)
    shift = load_shift(groups.loads, choices, shared)
    row = {
        "layer": layer.layer,
        "experts": layer.experts,
        "experts_per_token": layer.experts_per_token,
        **{statistic.key: _plain(statistic.value(whole)[0]) for statistic in AGREEMENT_STATISTICS},
        "agreement_low": low,
        "agreement_high": high,
        "excess_load_shift": _plain(excess_shift([shift])),
        **_margin_values(found.margins),
    }
    within = np.zeros(len(groups.tokens))
    for own in members.astype(bool):
        within[own] = influence(*(sums[own] for sums in parts[agreement.key]))
    return ComparedLayer(
        row,
        {statistic.key: statistic.value(domains) for statistic in AGREEMENT_STATISTICS},
        influences,
        within,
        _expert_rows(found, tokens.group_domain, sure),
        shift,
        _margin_rows(found),
        found.shared == layer.experts_per_token,
        found.identical,
    )


def _margin_values(margins: Margins | None) -> dict[str, Value]:
    changed, kept = ((np.nan, np.nan), (np.nan, np.nan)) if margins is None else (margins.changed, margins.kept)
    return {
        "changed_margin": _plain(changed[1]),
        "kept_margin": _plain(kept[1]),
        "changed_margin_mean": _plain(changed[0]),
        "kept_margin_mean": _plain(kept[0]),
        "margin_ratio": None if margins is None else _plain(margins.ratio),
    }


def _margin_rows(found: LayerAgreement) -> list[Row]:
    rows = [] if found.margins is None else found.margins.deciles
    keys = [column.key for column in MARGIN_COLUMNS[1:]]
    return [{"layer": found.layer.layer, **dict(zip(keys, row, strict=True))} for row in rows]


def _expert_rows(found: LayerAgreement, domain: NDArray[np.integer[Any]], sure: bool) -> list[Row]:
    """Token shares of every expert in A and B, and the t interval of their difference."""
    tokens, loads = found.groups.tokens, found.groups.loads
    if not tokens.sum():
        return []
    share = loads.sum(axis=1) / tokens.sum()
    difference = share[1] - share[0]
    error, quantile = standard_error(influence((loads[1] - loads[0]).T, tokens), domain) if sure else (np.nan, np.nan)
    ends = np.clip([difference - quantile * error, difference + quantile * error], -1, 1)
    columns = np.stack([*share, difference, *ends], axis=1)
    keys = [column.key for column in EXPERT_COLUMNS[2:-1]]
    return [
        {"layer": found.layer.layer, "expert": expert, **dict(zip(keys, map(_plain, values), strict=True))}
        for expert, values in enumerate(columns)
    ]


def summary_of(found: Comparison, experts: Sequence[Row]) -> dict[str, Value]:
    """Every key of the summary that two traces give; ``experts`` are the rows of that table."""
    rows = found.rows
    worst = across.spread([layer.layer for layer in found.trace.layers], _column(rows, "agreement"), "low")
    means = {statistic.key: mean_of(_column(rows, statistic.key)) for statistic in AGREEMENT_STATISTICS}
    layers = [layer.identical for layer in found.layers]
    same = False if False in layers else None if None in layers else True
    p_values = [p_value for row in experts if (p_value := number_of(row["p_value"])) is not None]
    return {
        "identical": None if found.same_tokens is None else same,
        **means,
        "worst_agreement": None if worst is None else worst.worst,
        "worst_layer": None if worst is None or worst.worst == worst.best else worst.worst_layer,
        "same_tokens": found.same_tokens,
        "excess_load_shift": _plain(excess_shift([layer.shift for layer in found.layers])),
        "shifted_experts": sum(p_value < SIGNIFICANT for p_value in p_values) if p_values else None,
        "margin_ratio": mean_of(_column(rows, "margin_ratio")),
        "tokens": found.tokens.total,
        "documents": len(found.trace.documents),
        "groups": len(found.tokens.group_tokens),
        "domains": len(found.trace.domains),
        "moe_layers": len(rows),
    }


def table_rows(found: Comparison, experts: Sequence[Row], summary: Row) -> dict[str, Sequence[Row]]:
    """The rows of the tables that two traces give, by table."""
    layers = sorted(found.layers, key=lambda layer: number_of(layer.row["agreement"]) or 0.0)
    return {
        "layers": [_certain(row, summary) for row in found.rows],
        "domains": [_certain(row, summary) for row in _domain_rows(found)],
        "experts": sorted(experts, key=lambda row: -abs(number_of(row["difference"]) or 0.0)),
        "margins": [row for layer in layers for row in layer.margins],
        "intervals": list(_interval_rows(found, summary)),
    }


def _certain(row: Row, summary: Row) -> Row:
    """The row of a comparison with the same: no other document would choose otherwise."""
    ends = {
        key: value if row[key] is not None else None for key, value in (("agreement_low", 1.0), ("agreement_high", 1.0))
    }
    return {**row, **ends} if summary["identical"] else row


def _domain_rows(found: Comparison) -> Iterator[Row]:
    owner = found.tokens.group_domain
    for index, domain in enumerate(found.trace.domains):
        own = owner == index
        means = {
            statistic.key: mean_of([_plain(layer.by_domain[statistic.key][index]) for layer in found.layers])
            for statistic in AGREEMENT_STATISTICS
        }
        within = np.mean([layer.domain_influence[own] for layer in found.layers], axis=0)
        counts = float(found.tokens.domain_tokens[index]) * sum(layer.experts_per_token for layer in found.trace.layers)
        low, high = _ends(means["agreement"], within, owner[own], across.has_intervals(owner[own]), counts)
        yield {
            "domain": domain,
            "groups": int(own.sum()),
            "tokens": int(found.tokens.domain_tokens[index]),
            **means,
            "agreement_low": low,
            "agreement_high": high,
        }


def _interval_rows(found: Comparison, summary: Row) -> Iterator[Row]:
    """Of the means over layers."""
    domain = found.tokens.group_domain
    for statistic in RATIOS:
        value = summary[statistic.key]
        mean = np.mean([layer.influences[statistic.key] for layer in found.layers], axis=0)
        low, high = _ends(value, mean, domain, across.has_intervals(domain), _counts(found, statistic.key))
        if summary["identical"] and low is not None:
            low = high = number_of(value)
        if low is not None:
            yield {"key": statistic.key, "unit": statistic.unit, "value": value, "low": low, "high": high}


def _counts(found: Comparison, key: str) -> float | None:
    """Of how many the statistic is a share, over all layers; None for a distance."""
    if key == "weight_distance":
        return None
    choices = [layer.experts_per_token if key == "agreement" else 1 for layer in found.trace.layers]
    return float(found.tokens.total * sum(choices))


def _ends(
    value: Value,
    influences: NDArray[np.float64],
    domain: NDArray[np.integer[Any]],
    sure: bool,
    counts: float | None,
) -> tuple[float | None, float | None]:
    """The 95 % interval of a share of ``counts``, or of a mean from 0 to 1; None where it is undefined or there are
    too few groups."""
    error, quantile = standard_error(influences, domain) if sure else (np.asarray(np.nan), np.nan)
    if not isinstance(value, float) or not np.isfinite(value) or not np.isfinite(error):
        return None, None
    if counts is not None:
        return score_interval(value, float(error), quantile, counts)
    return max(value - quantile * float(error), 0.0), min(value + quantile * float(error), 1.0)


def _plain(value: Any) -> Value:
    return defined(value.item() if isinstance(value, np.generic) else value)


def _column(rows: Sequence[Row], key: str) -> list[float | None]:
    return [number_of(row[key]) for row in rows]


def mean_of(values: Sequence[Value]) -> float | None:
    """Of those that are defined; None if none is."""
    known = [float(value) for value in values if isinstance(value, int | float)]
    return sum(known) / len(known) if known else None
