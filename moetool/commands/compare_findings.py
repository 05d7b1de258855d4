"""The sentences of ``compare``: traces or reports, their summary and tables enter, Findings leave, warnings first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from moetool.capture.trace import RoutingTrace, TraceDocument
from moetool.report.baseline import PLACES
from moetool.report.report import Finding, Unit, Value
from moetool.report.values import inert, number_of, write_percent, write_value
from moetool.statistics.across import ENOUGH_GROUPS
from moetool.statistics.agreement_loads import SIGNIFICANT
from moetool.statistics.pairing import Name

Row = Mapping[str, Value]

CLOSE_CALLS, ANY_CALLS = 0.25, 0.75
"""Margin ratios below which changes are called close calls, and above which the margin is said to matter little."""
CHANCE = 0.05
"""Corrected agreement below which two models are called unrelated, if it is surely below ``FAR``."""
FAR = 0.5
NAMED = 3
LAST_BITS = {"engine", "device", "batch_tokens", "experts_implementation", "torch", "max_tokens", "max_length", "seed"}
"""What changes no more than the last bits of the same model, type and tokens."""


def trace_findings(
    pair: tuple[RoutingTrace, RoutingTrace],
    renamed: Mapping[Name, tuple[TraceDocument, TraceDocument]],
    summary: Row,
    tables: Mapping[str, Sequence[Row]],
) -> Iterator[Finding]:
    """What two traces tell, for a reader who knows no documentation; ``renamed`` as ``renamed_documents`` has it."""
    if not summary["tokens"]:
        yield Finding("error", "no_tokens", "None counts: every token is special or masked in A or in B.")
        return
    groups = int(number_of(summary["groups"]) or 0)
    if groups < ENOUGH_GROUPS and not summary["identical"]:
        counted = f"{groups} independent group{'s' * (groups != 1)} of documents"
        told = f"Only {counted}: no intervals; {ENOUGH_GROUPS} or more give them."
        yield Finding("warning", "few_documents", told)
    yield from _agreement(summary, tables["layers"], tables["intervals"])
    if not summary["identical"]:
        yield from _loads(summary, tables["experts"])
        yield from _margins(summary)
        yield from _domains(tables["domains"])
    yield from _missing(pair)
    yield from _renamed(renamed)
    yield from _differing(pair)


def _is_unrelated(summary: Row, intervals: Sequence[Row]) -> bool:
    """Whether agreement is what chance gives, and surely not far above: one or few tokens cannot tell."""
    baseline = number_of(summary["agreement_baseline"])
    ends = [number_of(row["high"]) for row in intervals if row["key"] == "agreement"]
    if baseline is None or baseline >= 1 or not ends or ends[0] is None:
        return False
    corrected = number_of(summary["corrected_agreement"]) or 0.0
    return corrected < CHANCE and (ends[0] - baseline) / (1 - baseline) < FAR


def _agreement(summary: Row, layers: Sequence[Row], intervals: Sequence[Row]) -> Iterator[Finding]:
    tokens = f"{summary['tokens']:,}"
    if summary["identical"]:
        told = f"A and B are the same: every one of {tokens} tokens chose the same experts in every layer"
        weights = ", with the same weights" if summary["weight_distance"] is not None else ""
        yield Finding("info", "identical", f"{told}{weights}.")
        return
    if _is_unrelated(summary, intervals):
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
    """Whose load moved, where that is sure, and how much of the disagreement that is."""
    moved = [row for row in experts if (number_of(row["p_value"]) or 0.0) < SIGNIFICANT and row["p_value"] is not None]
    if not moved:
        return
    top = moved[0]
    told = (
        f"The load of {len(moved):,} of {len(experts):,} experts moved by more than chance (p below {SIGNIFICANT}, "
        f"adjusted for all of them), {'most ' * (len(moved) > 1)}that of expert {top['expert']} of layer "
        f"{top['layer']}: {_percent(top['share_a'])} of the tokens in A, {_percent(top['share_b'])} in B"
    )
    excess = number_of(summary["excess_load_shift"]) or 0.0
    if excess > 0:
        told += (
            f". Chance aside, moved loads make about {write_percent(excess)} of the disagreement; the rest is the same "
            "load on other tokens"
        )
    yield Finding("info", "load_shift", f"{told}.")


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


def _renamed(renamed: Mapping[Name, tuple[TraceDocument, TraceDocument]]) -> Iterator[Finding]:
    if renamed:
        told = ", ".join(
            f"{name} {getattr(own, name)!r} in A is {getattr(other, name)!r} in B"
            for name, (own, other) in renamed.items()
        )
        message = f"The documents are the same, token by token, under other names; those of A are used: {told}."
        yield Finding("info", "renamed", inert(message))


def _differing(pair: tuple[RoutingTrace, RoutingTrace]) -> Iterator[Finding]:
    """What was different about the two runs."""
    mine, other = (
        {"model": trace.model.get("name"), "revision": trace.model.get("revision"), **trace.settings, **trace.versions}
        for trace in pair
    )
    shares = [side.pop("quantized_share", None) for side in (mine, other)]
    for name, share in zip("AB", shares, strict=True):
        if isinstance(share, float):
            message = (
                f"{name} was quantised in part: {_percent(share)} of its parameters; the experts, if merged, were not."
            )
            yield Finding("info", "quantized_share", message)
    told = differences(mine, other)
    if not told:
        yield Finding("info", "same_settings", "Both traces name the same model, revision and settings.")
        return
    note = ": these change the last bits alone" if told.keys() <= LAST_BITS else ""
    yield Finding("info", "settings", f"A and B differ in {_listed(told)}{note}.")


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """``bfloat16 and float32`` for every key that two mappings of plain values give different values."""
    keys = [key for key in dict.fromkeys([*mine, *other]) if mine.get(key) != other.get(key)]
    pairs = {key: (_said(mine.get(key)), _said(other.get(key))) for key in keys}
    return {key: ("; " if " and " in "".join(pair) else " and ").join(pair) for key, pair in pairs.items()}


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_said, value)) or "none"
    return (
        "none" if value is None else write_value(value, "number") if isinstance(value, int | float | str) else "other"
    )


def _listed(told: Mapping[str, str]) -> str:
    return ", ".join(f"{inert(key)} ({values})" for key, values in told.items())


def report_findings(
    reports: Sequence[Mapping[str, Any]],
    summary: Row,
    values: Sequence[Row],
    kinds: Mapping[str, Sequence[Row]],
    cells: Sequence[Row],
) -> Iterator[Finding]:
    """What two JSON reports tell; ``values`` and ``cells`` are the rows of the tables, ``kinds`` those of the values
    that no relative difference tells of."""
    told = differences(*_told_of(reports))
    if told.pop("corpus", None):
        message = "A and B read other text, by their token ids: what differs may be the text's doing."
        yield Finding("warning", "corpus", message)
    if summary["identical"]:
        yield Finding("info", "identical", f"All of {summary['compared_values']:,} values are the same in A and B.")
    else:
        yield Finding("info", "different", _counted(summary, values))
    sentences = {
        "from_zero": "0 in A and not in B: {}.",
        "undefined_in_one": "Undefined in one of the two: {}.",
        "keys_of_one": "Keys of the summary that one report lacks, as of another version or other options: {}.",
    }
    for code, sentence in sentences.items():
        names = [f"{row['key']} ({_value(row, 'a')} and {_value(row, 'b')})" for row in kinds.get(code, ())]
        if names:
            yield Finding("info", code, sentence.format(_some(names)))
    apart = [str(row["key"]) for row in values if row["apart"]]
    if apart:
        yield Finding("info", "intervals_apart", f"The 95 % intervals do not meet of {_some(apart)}.")
    rows = [row for row in cells if row["column"] == "(row)"]
    sides = [f"{count:,} in {side} only" for side, key in (("A", "a"), ("B", "b"))
             if (count := sum(row[key] is True for row in rows))]  # fmt: skip
    if sides:
        yield Finding("info", "rows_of_one", f"Rows of tables that one report lacks: {' and '.join(sides)}.")
    if told:
        yield Finding("info", "options", f"A and B differ in {_listed(told)}.")


def _told_of(reports: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Model and options of each report, and what ``auto`` became and which versions ran where both tell."""
    made = [found if isinstance(found := report.get("environment"), dict) else {} for report in reports]
    both = [key for key in made[0] if key in made[1]]
    for report, one in zip(reports, made, strict=True):
        named = {"model": report["model"].get("name"), "revision": report["model"].get("revision")}
        options = {key: value for key, value in report["options"].items() if key not in PLACES}
        yield {**named, **options, **{key: one[key] for key in both}}


def _value(row: Row, side: str) -> str:
    return write_value(row[side], cast(Unit, row["unit"]))


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
