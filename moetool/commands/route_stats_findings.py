"""The sentences of ``route-stats``: a trace, its summary and tables enter, Findings leave, warnings first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from moetool.report.report import Finding, Value
from moetool.report.values import as_number, write_percent

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace

Row = Mapping[str, Value]

ENOUGH_GROUPS = 8
UNBALANCED = 1.0
"""A layer is called unbalanced if an expert surely takes more than 1 + this times the mean load."""
NOISE = 4.0
"""Standard errors that a load must be above that."""
NAMED_LAYERS = 5
PARTS = (
    ("scores", "router scores", "router_entropy, top1_probability, boundary_margin and z_loss are null there"),
    ("probability", "mean router probabilities", "the balance losses are null there"),
    (
        "weight",
        "weights",
        "weight_share and topk_mass are null there, and the first choice is the first in stored order",
    ),
)
"""What a layer of a trace may lack: its field, its name, and what follows."""
LEVELS = ("error", "warning", "info")


def findings_of(trace: RoutingTrace, summary: Row, tables: Mapping[str, Sequence[Row]]) -> tuple[Finding, ...]:
    """Warnings first, then what the numbers say, for a reader who knows no documentation."""
    found = _findings(trace, summary, tables)
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def _findings(trace: RoutingTrace, summary: Row, tables: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
    layers, experts = tables["layers"], tables["experts"]
    if not summary["tokens"]:
        yield Finding("error", "no_tokens", "None counts: every token of this trace is special or masked.")
        return
    yield from _few_documents(int(as_number(summary["groups"])))
    yield from _missed_experts(summary, layers, experts)
    yield from _unbalanced(summary, layers)
    yield from _dropped(layers)
    yield from _zero_compute(layers)
    yield from _balance(summary, layers)
    yield from _all_used(summary, experts)
    yield from _certainty(layers)
    yield from _repeats(summary)
    yield from _mixed_phases(tables["phases"])
    yield from _together(layers, tables["coactivation"])
    yield from _paths(layers)
    if trace.load_only:
        yield Finding("warning", "load_only", "Only loads were recorded: what needs the choice of each token is null.")
    for field, name, consequence in PARTS:
        missing = sum(getattr(layer, field) is None for layer in trace.layers)
        if missing and not trace.load_only:
            told = f"{missing} of {len(layers)} layers of this trace have no {name}: {consequence}."
            yield Finding("info", f"no_{field}", told)


def _dropped(layers: Sequence[Row]) -> Iterator[Finding]:
    row = max(layers, key=lambda row: as_number(row["dropped_share"]))
    share = as_number(row["dropped_share"])
    if share > 0:
        told = f"Full experts did not run {share:.0%} of the choices in layer {row['layer']}; loads count all choices."
        yield Finding("warning", "dropped_choices", told.replace("%", " %"))


def _zero_compute(layers: Sequence[Row]) -> Iterator[Finding]:
    row = max(layers, key=lambda row: as_number(row["zero_compute_share"]))
    share = as_number(row["zero_compute_share"])
    if share > 0:
        told = f"In layer {row['layer']}, {share:.0%} of the choices are of experts that compute nothing."
        yield Finding("info", "zero_compute", told.replace("%", " %"))


def _few_documents(groups: int) -> Iterator[Finding]:
    if groups == 1:
        message = "All tokens come from one group of documents: that cannot show dead or cold experts, give more text."
        yield Finding("warning", "few_documents", message)
    elif groups < ENOUGH_GROUPS:
        message = (
            f"Only {groups} independent groups of documents: loads may be those of these texts and not of the model; "
            f"{ENOUGH_GROUPS} or more tell them apart."
        )
        yield Finding("warning", "few_documents", message)


def _missed_experts(summary: Row, layers: Sequence[Row], experts: Sequence[Row]) -> Iterator[Finding]:
    if summary["dead_experts"]:
        message = f"Never chosen, and by enough tokens to call them dead: {_named(experts, 'dead')}."
        yield Finding("warning", "dead_experts", message)
    missed = [row for row in layers if row["unobserved"]]
    if missed:
        message = (
            f"Experts never chosen, by too few tokens ({summary['tokens']:,}) to call them dead: "
            f"{summary['unobserved_experts']}, in {len(missed)} of {len(layers)} layers; {_needed(missed)}."
        )
        yield Finding("warning", "unobserved_experts", message)
    if summary["cold_experts"]:
        message = f"Cold, surely below a quarter of the mean load in every domain: {_named(experts, 'cold')}."
        yield Finding("info", "cold_experts", message)


def _needed(missed: Sequence[Row]) -> str:
    from moetool.statistics.documents import tokens_needed

    needed = [
        tokens_needed(row["design_effect"], int(as_number(row["experts"])), int(as_number(row["experts_per_token"])))
        for row in missed
        if isinstance(row["design_effect"], float)
    ]
    largest = max((value for value in needed if value is not None), default=None)
    if largest is None:
        return "that takes more than one group of documents"
    return f"that takes about {math.ceil(largest):,} tokens of documents like these"


def _named(experts: Sequence[Row], status: str) -> str:
    """``experts 5, 9 of layer 3; expert 1 of layer 7; and 4 in 2 more layers``."""
    found: dict[Value, list[str]] = {}
    for row in experts:
        if row["status"] == status:
            found.setdefault(row["layer"], []).append(str(row["expert"]))
    lists = [
        f"expert{'s' * (len(ids) > 1)} {', '.join(ids)} of layer {layer}"
        for layer, ids in list(found.items())[:NAMED_LAYERS]
    ]
    rest = list(found.values())[NAMED_LAYERS:]
    return "; ".join([*lists, *([f"and {sum(map(len, rest))} in {len(rest)} more layers"] * bool(rest))])


def _far_above(summary: Row, layers: Sequence[Row]) -> list[Row]:
    """Layers whose busiest expert is far above the mean, by more than chance and correlated tokens explain."""
    tokens = as_number(summary["tokens"])

    def surely(row: Row) -> float:
        mean_load = tokens * as_number(row["experts_per_token"]) / as_number(row["experts"])
        effect = as_number(row["design_effect"]) or 1.0
        return as_number(row["max_violation"]) - NOISE * math.sqrt(effect / mean_load)

    return [row for row in layers if surely(row) > UNBALANCED]


def _unbalanced(summary: Row, layers: Sequence[Row]) -> Iterator[Finding]:
    found = _far_above(summary, layers)
    if not found:
        return
    worst = max(found, key=lambda row: as_number(row["max_violation"]))
    times, limit = as_number(worst["max_violation"]) + 1, as_number(worst["max_violation_limit"]) + 1
    message = (
        f"Layer {worst['layer']} is unbalanced: expert {worst['busiest_expert']} takes {times:.1f} times the mean load "
        f"(at worst {limit:.1f} times); layers that surely, beyond chance, have an expert above {UNBALANCED + 1:.0f} "
        f"times it: {len(found)} of {len(layers)}."
    )
    yield Finding("warning", "unbalanced_layer", message)


def _balance(summary: Row, layers: Sequence[Row]) -> Iterator[Finding]:
    """The least balanced layer between the two ends of the scale, where no warning names it."""
    if summary["max_violation"] is None or _far_above(summary, layers):
        return
    worst = max(layers, key=lambda row: as_number(row["max_violation"]))
    rank = " is the least balanced" if len(layers) > 1 else ""
    message = (
        f"Load: layer {worst['layer']}{rank}; its busiest expert, {worst['busiest_expert']}, takes "
        f"{as_number(worst['max_violation']) + 1:.2f} times the mean load (1 would be uniform, "
        f"{as_number(worst['max_violation_limit']) + 1:.3g} the worst possible)."
    )
    if len(layers) > 1:
        mean = as_number(summary["mean_max_violation"]) + 1
        message += f" The busiest experts of all {len(layers)} layers take {mean:.2f} times it on average."
    yield Finding("info", "load_balance", message)


def _all_used(summary: Row, experts: Sequence[Row]) -> Iterator[Finding]:
    if summary["dead_experts"] or summary["unobserved_experts"]:
        return
    least = min(experts, key=lambda row: as_number(row["utilization"]))
    message = (
        f"No dead experts: each of the {len(experts):,} was chosen by some of the {summary['tokens']:,} tokens. The "
        f"least used is expert {least['expert']} of layer {least['layer']}, at "
        f"{as_number(least['utilization']):.2g} times the mean load."
    )
    yield Finding("info", "all_experts_used", message)


def _certainty(layers: Sequence[Row]) -> Iterator[Finding]:
    known = [row for row in layers if isinstance(row["top1_probability"], float)]
    if not known:
        return
    mean = sum(as_number(row["top1_probability"]) for row in known) / len(known)
    even = sum(1 / as_number(row["experts"]) for row in known) / len(known)
    message = f"Certainty: the router gives its favourite expert {write_percent(mean)} of the probability on average"
    least, most = (pick(known, key=lambda row: as_number(row["top1_probability"])) for pick in (min, max))
    low, high = write_percent(least["top1_probability"]), write_percent(most["top1_probability"])
    if low != high:
        message += f", from {low} in layer {least['layer']} to {high} in layer {most['layer']}"
    yield Finding("info", "router_certainty", f"{message}; without any preference it would be {100 * even:.3g} %.")


def _repeats(summary: Row) -> Iterator[Finding]:
    rate, matched = as_number(summary["repeat_rate"]), as_number(summary["repeat_rate_matched"])
    if not matched or summary["repeat_rate"] is None:
        return
    message = (
        f"Locality: {write_percent(rate)} of tokens have the same first choice as the token before them, "
        f"{rate / matched:.1f} times the {write_percent(matched)} of unrelated tokens with the same loads."
    )
    yield Finding("info", "locality", message)


def _together(layers: Sequence[Row], pairs: Sequence[Row]) -> Iterator[Finding]:
    """The most surprising pair against its null; the lift of a pair without affinities is not 1."""
    if not pairs or not as_number(pairs[0]["lift"]) or not as_number(pairs[0]["lift_matched"]):
        return
    pair = pairs[0]
    share, times = as_number(pair["coactivation"]), as_number(pair["lift"]) / as_number(pair["lift_matched"])
    message = (
        f"Co-activation, the most surprising pair: in layer {pair['layer']}, {write_percent(share)} of the tokens of "
        f"expert {pair['expert']} choose expert {pair['other']} too, against {write_percent(share / times)} if their "
        "loads alone decided. That baseline is the column 'Lift, matched': compare lifts with it, not with 1."
    )
    yield Finding("info", "coactivation", message)


def _paths(layers: Sequence[Row]) -> Iterator[Finding]:
    """The pair of neighbouring layers whose choices tell most of each other."""
    pairs = [(one, other) for one, other in pairwise(layers) if isinstance(other["path_information"], float)]
    if not pairs:
        return
    before, most = max(pairs, key=lambda pair: as_number(pair[1]["path_information"]))
    message = (
        f"Paths: of neighbouring MoE layers, the choices in layers {before['layer']} and {most['layer']} are related "
        f"most: normalised mutual information of their experts {as_number(most['path_information']):.2g}, against "
        f"{as_number(most['path_information_matched']):.2g} if they were unrelated."
    )
    yield Finding("info", "paths", message)


def _mixed_phases(phases: Sequence[Row]) -> Iterator[Finding]:
    if phases:
        told = " and ".join(f"{row['tokens']:,} of {row['phase']}" for row in phases)
        yield Finding(
            "info", "mixed_phases", f"All numbers mix tokens, {told}; the table 'phases' and --phase tell them apart."
        )
