"""The sentences of ``compare``: traces or reports, their summary and tables enter, Findings leave, warnings first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moetool.capture.join import NUMERIC_SETTINGS
from moetool.capture.trace import RoutingTrace
from moetool.report.report import Finding, Value
from moetool.report.values import inert, number_of, write_value
from moetool.statistics.across import ENOUGH_GROUPS

Row = Mapping[str, Value]

CLOSE_CALLS, ANY_CALLS = 0.25, 0.75
"""Margin ratios below which changes are called close calls, and above which the margin is said to matter little."""
CHANCE = 0.05
"""Corrected agreement below which two models are called unrelated."""
NOTABLE = 0.01
"""Share of the tokens that an expert gained or lost before a sentence names it."""
NAMED = 3


def trace_findings(
    pair: tuple[RoutingTrace, RoutingTrace], summary: Row, tables: Mapping[str, Sequence[Row]]
) -> Iterator[Finding]:
    """What two traces tell, for a reader who knows no documentation."""
    if not summary["tokens"]:
        yield Finding("error", "no_tokens", "None counts: every token is special or masked in A or in B.")
        return
    groups = int(number_of(summary["groups"]) or 0)
    if groups < ENOUGH_GROUPS:
        told = f"Only {groups} independent groups of documents: no intervals; {ENOUGH_GROUPS} or more give them."
        yield Finding("warning", "few_documents", told)
    yield from _agreement(summary, tables["layers"])
    if not summary["identical"]:
        yield from _loads(summary, tables["experts"])
        yield from _margins(summary)
        yield from _domains(tables["domains"])
    yield from _missing(pair)
    yield from _differing(pair)


def _agreement(summary: Row, layers: Sequence[Row]) -> Iterator[Finding]:
    tokens = f"{summary['tokens']:,}"
    if summary["identical"]:
        told = f"A and B are the same: every one of {tokens} tokens chose the same experts in every layer"
        weights = ", with the same weights" if summary["weight_distance"] is not None else ""
        yield Finding("info", "identical", f"{told}{weights}.")
        return
    corrected = number_of(summary["corrected_agreement"])
    if corrected is not None and corrected < CHANCE:
        told = "A and B agree no more than by chance: expert ids of models trained apart have nothing in common."
        yield Finding("warning", "unrelated", told)
    told = f"{_percent(summary['agreement'])} of a token's experts are the same in A and B, mean over layers"
    told += f"; independent choices with these loads would share {_percent(summary['agreement_baseline'])}"
    if summary["worst_layer"] is not None:
        told += f", and layer {summary['worst_layer']} shares least, {_percent(summary['worst_agreement'])}"
    yield Finding("info", "agreement", f"{told}.")
    if len(layers) > 1:
        told = f"{_percent(summary['same_tokens'])} of {tokens} tokens chose the same experts in every layer."
        yield Finding("info", "same_tokens", told)


def _loads(summary: Row, experts: Sequence[Row]) -> Iterator[Finding]:
    """How much of the disagreement the loads force, and whose load moved most."""
    agreement, limit = number_of(summary["agreement"]), number_of(summary["agreement_limit"])
    if agreement is None or limit is None or agreement >= 1:
        return
    told = f"{_percent((1 - limit) / (1 - agreement))} of the disagreement is forced by loads that moved"
    top = experts[0]
    if abs(number_of(top["difference"]) or 0.0) >= NOTABLE:
        told += (
            f", most that of expert {top['expert']} of layer {top['layer']}: {_percent(top['share_a'])} of the tokens "
            f"in A, {_percent(top['share_b'])} in B"
        )
    yield Finding("info", "load_shift", f"{told}; the rest is the same load on other tokens.")


def _margins(summary: Row) -> Iterator[Finding]:
    ratio = number_of(summary["margin_ratio"])
    if ratio is None:
        return
    told = f"Tokens whose experts changed had a median boundary margin of {ratio:.2g} times that of the others, in A: "
    if ratio < CLOSE_CALLS:
        told += "close calls changed, as rounding does."
    elif ratio > ANY_CALLS:
        told += "sure choices changed as well as close ones, as another router or other inputs do."
    else:
        told += "close calls changed more than sure ones."
    yield Finding("info", "margins", told)


def _domains(domains: Sequence[Row]) -> Iterator[Finding]:
    """The domain that drifted most, where its interval and that of the steadiest one do not meet."""
    known = [row for row in domains if row["agreement_low"] is not None]
    if len(known) < 2:
        return
    ranked = sorted(known, key=lambda row: number_of(row["agreement"]) or 0.0)
    least, most = ranked[0], ranked[-1]
    if (number_of(least["agreement_high"]) or 0.0) < (number_of(most["agreement_low"]) or 0.0):
        told = (
            f"A and B agree least on {inert(str(least['domain']))} ({_percent(least['agreement'])}) and most on "
            f"{inert(str(most['domain']))} ({_percent(most['agreement'])}); their 95 % intervals do not meet."
        )
        yield Finding("info", "domains", told)


def _missing(pair: tuple[RoutingTrace, RoutingTrace]) -> Iterator[Finding]:
    for side, trace in zip("AB", pair, strict=True):
        lacking = [field for field in ("weight", "scores")
                   if any(getattr(layer, field) is None for layer in trace.layers)]  # fmt: skip
        if "weight" in lacking:
            told = (
                f"{side} has layers without weights: weight_distance and, for K above 1, top1_agreement are null there."
            )
            yield Finding("info", "no_weight", told)
        if "scores" in lacking and side == "A":
            yield Finding("info", "no_scores", "A has layers without router scores: the margins are unknown there.")


def _differing(pair: tuple[RoutingTrace, RoutingTrace]) -> Iterator[Finding]:
    """What was different about the two runs."""
    mine, other = ({**trace.settings, "name": trace.model.get("name"), "revision": trace.model.get("revision")}
                   for trace in pair)  # fmt: skip
    told = differences(mine, other)
    if not told:
        yield Finding("info", "same_settings", "Both traces name the same model, revision and settings.")
        return
    only_numeric = not {"name", "revision", *NUMERIC_SETTINGS} & told.keys()
    note = ": these change the last bits alone" if only_numeric else ""
    yield Finding("info", "settings", f"A and B differ in {_listed(told)}{note}.")


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """``bfloat16 and float32`` for every key that two mappings of plain values give different values."""
    keys = dict.fromkeys([*mine, *other])
    return {
        key: f"{_said(mine.get(key))} and {_said(other.get(key))}" for key in keys if mine.get(key) != other.get(key)
    }


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_said, value)) or "none"
    return (
        "none" if value is None else write_value(value, "number") if isinstance(value, int | float | str) else "other"
    )


def _listed(told: Mapping[str, str]) -> str:
    return ", ".join(f"{inert(key)} ({values})" for key, values in told.items())


def report_findings(
    reports: Sequence[Mapping[str, Any]], summary: Row, values: Sequence[Row], cells: Sequence[Row]
) -> Iterator[Finding]:
    """What two JSON reports tell; ``values`` and ``cells`` are the rows of the tables."""
    told = differences(*({**report["options"], "sources": None} for report in reports))
    names = [report["model"].get("name") for report in reports]
    if names[0] != names[1]:
        told = {"model": f"{_said(names[0])} and {_said(names[1])}", **told}
    if summary["identical"]:
        yield Finding("info", "identical", f"All of {summary['compared_values']:,} values are the same in A and B.")
    else:
        yield Finding("info", "different", _counted(summary, values))
    apart = [str(row["key"]) for row in values if row["apart"]]
    if apart:
        yield Finding("info", "intervals_apart", f"The 95 % intervals do not meet of {_some(apart)}.")
    rows = [row for row in cells if row["column"] == "(row)"]
    if rows:
        only = sum(row["a"] is True for row in rows)
        told_rows = (
            f"{only} rows of tables are in A only, and {len(rows) - only} in B only: most often those ranked high."
        )
        yield Finding("info", "rows_of_one", told_rows)
    if told:
        yield Finding("info", "options", f"A and B differ in {_listed(told)}.")


def _counted(summary: Row, values: Sequence[Row]) -> str:
    told = f"{summary['different_values']:,} of {summary['compared_values']:,} values differ"
    changed = [row for row in values if row["relative_difference"]][:NAMED]
    moves = [f"{row['key']} ({_percent(row['relative_difference'], signed=True)})" for row in changed]
    return f"{told}; of the summary, relative to A, most {', '.join(moves)}." if moves else f"{told}."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _percent(value: Value, signed: bool = False) -> str:
    number = number_of(value)
    plus = "+" if signed and number is not None and number > 0 else ""
    return plus + write_value(number, "share")
