"""The numbers of ``specialize``: a Specialization enters, the summary and the rows of the report's tables leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moetool.capture.trace import RoutingTrace
from moetool.report.report import Column, Table, Value
from moetool.statistics.counts import GroupCounts
from moetool.statistics.kinds import DOMAIN, LANGUAGE, MIXED, PATTERN, Kind
from moetool.statistics.significance import MINIMUM_HITS
from moetool.statistics.specialization import Specialists, Specialization

Row = dict[str, Value]
Verdicts = Mapping[tuple[str, Value, Value], str]
"""Of the ablation, by domain, layer and expert."""

SPECIALIST_COLUMNS: tuple[Column, ...] = (
    Column("layer", "Layer", help="Decoder layer number."),
    Column("expert", "Expert"),
    Column("domain", "Domain", "text"),
    Column(
        "lift", "Lift", "ratio", help="Token share over its mean over domains: 1 without taste, at most the domains."
    ),
    Column("lift_low", "Lift from", "ratio", help="95 % interval, bootstrap over groups."),
    Column("lift_high", "to", "ratio", help="95 % interval, bootstrap over groups."),
    Column("q_value", "q", help="p, corrected for all layers, experts and domains (Benjamini-Hochberg)."),
    Column("token_share", "Token share", "share", help="Of the domain's tokens; lift and interval are of this."),
    Column("baseline", "Uniform", "share", True, help="K/E: the share if all experts were chosen alike."),
    Column(
        "p_value",
        "p",
        detail=True,
        help="One-sided, domain labels permuted over the groups of the other half.",
    ),
    Column(
        "kind",
        "Kind",
        "text",
        help="What survives: domain, language, pattern or mixed; empty: too weak to tell, or no text of tokens.",
    ),
    Column("causal", "Needed", "text", True, "With --ablate: confirmed, refuted or unclear; empty if not masked."),
    Column("explained_by", "By", "text", help="The token class, or the same texts in another language, behind it."),
    Column("class_lift", "Equal classes", "ratio", True, "The lift if all domains had the same mixture of classes."),
    Column("class_low", "from", "ratio", True, "Lower end of its 95 % interval; at most 1: the classes explain it."),
    Column("token_lift", "Equal tokens", "ratio", True, "The lift among tokens that the other domains have too."),
    Column("token_low", "from", "ratio", True, "Lower end of its 95 % interval; at most 1: the words explain it."),
    Column("token_coverage", "Tokens shared", "share", True, "Of the domain's tokens, those that this compares."),
)
TASK_COLUMNS: tuple[Column, ...] = (
    *SPECIALIST_COLUMNS[:2],
    Column("task", "Task", "text", help="What was asked of the text."),
    Column("lift", "Lift", "ratio", help="Token share over its mean over tasks, in the domains that have them all."),
    *SPECIALIST_COLUMNS[4:6],
    Column("q_value", "q", help="p, corrected for all layers, experts and tasks (Benjamini-Hochberg)."),
    Column("token_share", "Token share", "share", help="Of the task's tokens; lift and interval are of this."),
    SPECIALIST_COLUMNS[8],
    Column("p_value", "p", help="One-sided, task labels permuted within domains, on the other half of the groups."),
)
LAYER_COLUMNS: tuple[Column, ...] = (
    Column("layer", "Layer", help="Decoder layer number."),
    Column("experts", "Experts", "count", detail=True),
    Column("experts_per_token", "Chosen per token", "count", detail=True),
    Column("information_bits", "Information", "bits", help="I(expert; domain); above 0 by chance."),
    Column("excess_information_bits", "Beyond chance", "bits", help="Minus the mean under permuted labels."),
    Column("excess_low", "from", "bits", help="95 % interval, bootstrap over groups, bias-corrected."),
    Column("excess_high", "to", "bits", help="95 % interval, bootstrap over groups, bias-corrected."),
    Column("p_value", "p", help="Share of permutations that reach the observed information."),
    Column("null_low", "Null from", "bits", True, "95 % of permutations lie above this, beyond their mean."),
    Column("null_high", "Null to", "bits", True, "95 % of permutations lie below this, beyond their mean."),
    Column("token_explained", "By tokens", "share", help="Of the information, what token identity explains."),
    Column("class_explained", "By classes", "share", True, "Of the information, what the token classes explain."),
    Column("vocabulary", "Vocabulary", "share", True, "How far tokens are mostly one expert's: see vocabulary_null."),
    Column("vocabulary_null", "Vocabulary, null", "share", True, "The same if every occurrence chose alike."),
    Column("committee", "Committee", "count", True, "Experts in the top K of every domain."),
    Column("committee_expected", "By chance", "number", True, "The same if domains ranked experts at random."),
    Column("committee_coverage", "Its share", "share", True, "Share of all choices that the committee takes."),
    Column("specialists", "Preferences", "count", help="Preferences found for a domain."),
)
DOMAIN_COLUMNS: tuple[Column, ...] = (
    Column("domain", "Domain", "text"),
    Column("documents", "Documents", "count"),
    Column("groups", "Groups", "count", help="Independent groups of documents."),
    Column("available_tokens", "Tokens", "count", help="Tokens outside special tokens and templates."),
    Column("tokens", "Tokens used", "count", help="After the equal budget."),
    Column("template_tokens", "Template", "count", help="Length of a start that its documents share; masked."),
    Column("accuracy", "Named right", "share", help="Its groups whose domain is named from their routing alone."),
    Column("specialists", "Preferences", "count", help="Experts that prefer it."),
    Column("neighbour_p_value", "Neighbours p", detail=True, help="Small: neighbouring groups are not independent."),
)
KINDS = (DOMAIN, LANGUAGE, PATTERN, MIXED)
KIND_KEYS = ("kind", "explained_by", "class_lift", "class_low", "token_lift", "token_low", "token_coverage")
DIVERGENCE_COLUMNS: tuple[Column, ...] = (
    Column("domain", "Domain", "text"),
    Column("other", "Other", "text"),
    Column("divergence_bits", "Divergence", "bits", True, "Jensen-Shannon, all documents, mean over layers."),
    Column("halves_bits", "Between", "bits", help="The same of a half of one and a half of the other, mean of 20."),
    Column("control_bits", "Within", "bits", help="The same of two halves of one domain: what chance gives (A/A)."),
    Column("excess_bits", "Beyond", "bits", help="halves_bits minus control_bits: 0 where the domains route alike."),
)
DIVERGENCE_NOTE = "Jensen-Shannon divergence of the choices, mean over layers, beside that of halves of one domain."
DESCRIPTIVE_ROWS = 20
TEXT_ROWS = 20


def summary(trace: RoutingTrace, result: Specialization, verdicts: Verdicts | None = None) -> Row:
    """Every key of the summary."""
    found, control, layers = result.specialists, result.control, result.layers
    kinds = [kind.kind for kind in result.kinds or ()]
    return {
        "domains": len(result.counts.domains),
        "documents": len(trace.documents),
        "groups": len(result.counts.tokens),
        "tokens": int(result.counts.tokens.sum()),
        "budget_tokens": result.sample.budget_tokens,
        "moe_layers": len(result.counts.layers),
        "information_bits": float(result.observed_bits.mean()),
        "excess_information_bits": float(layers.information.excess_bits.mean()) if layers else None,
        "document_accuracy": result.classification.accuracy if result.classification else None,
        "chance_accuracy": 1 / len(result.counts.domains),
        "specialists": len(found.cell) if found else None,
        "specialist_experts": len(np.unique(found.cell)) if found else None,
        **{f"{kind}_specialists": kinds.count(kind) if kinds else None for kind in KINDS},
        "pattern_preferences": len(result.text.found) if result.text else None,
        "token_explained": _mean_share(result.text.token_explained) if result.text else None,
        "task_specialists": len(result.task_specialists.cell) if result.task_specialists else None,
        **{
            f"{verdict}_specialists": None if verdicts is None else list(verdicts.values()).count(verdict)
            for verdict in ("confirmed", "refuted")
        },
        "tested_preferences": int((~np.isnan(found.tests.p_value)).sum()) if found else None,
        "control_runs": control.runs if control else 0,
        "control_specialists": control.specialists if control else None,
        "control_information_bits": control.excess_information_bits if control else None,
        "control_accuracy": control.accuracy if control else None,
    }


def _mean_share(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None


def specialist_rows(result: Specialization, verdicts: Verdicts) -> list[Row]:
    """Confirmed preferences, the surest first; where nothing can be tested the highest lifts, without p values."""
    found = result.specialists
    if found is None:
        return _highest_lifts(result)
    kinds: Sequence[Kind | None] = result.kinds or [None] * len(found.cell)
    return [
        {**row, **_kind(kind), "causal": verdicts.get((str(row["domain"]), row["layer"], row["expert"]))}
        for row, kind in zip(_preferences(result.counts, found, "domain"), kinds, strict=True)
    ]


def task_rows(result: Specialization) -> list[Row]:
    """Confirmed preferences for a task."""
    if result.task_specialists is None or result.tasks is None or result.tasks.counts is None:
        return []
    return _preferences(result.tasks.counts, result.task_specialists, "task")


def _preferences(counts: GroupCounts, found: Specialists, label: str) -> list[Row]:
    return [
        {
            **_place(counts, int(cell)),
            label: counts.domains[domain],
            "lift": float(found.lift[i]),
            "lift_low": float(found.low[i]),
            "lift_high": float(found.high[i]),
            "token_share": float(found.token_share[i]),
            "p_value": float(found.tests.p_value[domain, cell]),
            "q_value": float(found.tests.q_value[domain, cell]),
        }
        for i, (domain, cell) in enumerate(zip(found.domain, found.cell, strict=True))
    ]


def _kind(kind: Kind | None) -> Row:
    if kind is None:
        return dict.fromkeys(KIND_KEYS)
    return {key: getattr(kind, key) or None for key in KIND_KEYS[:2]} | {
        key: getattr(kind, key) for key in KIND_KEYS[2:]
    }


def _highest_lifts(result: Specialization) -> list[Row]:
    common = result.shares.mean(axis=0) * result.sample.budget_tokens >= MINIMUM_HITS
    lift = np.where(common, result.lifts, 0.0)
    order = np.argsort(-lift, axis=None, kind="stable")[:DESCRIPTIVE_ROWS]
    untested: Row = dict.fromkeys(("lift_low", "lift_high", "p_value", "q_value", "causal", *KIND_KEYS))
    return [
        {
            **untested,
            **_place(result.counts, int(cell)),
            "domain": result.counts.domains[domain],
            "lift": float(lift[domain, cell]),
            "token_share": float(result.shares[domain, cell]),
        }
        for domain, cell in zip(*np.unravel_index(order, lift.shape), strict=True)
        if lift[domain, cell] > 1
    ]


def _place(counts: GroupCounts, cell: int) -> Row:
    layer = next(layer for layer in counts.layers if cell < layer.cells.stop)
    return {
        "layer": layer.layer,
        "expert": cell - layer.start,
        "baseline": layer.experts_per_token / layer.experts,
    }


def specialist_table(rows: Sequence[Row], tested: bool) -> Table:
    """The table that the report begins with; what was not tested is not called a specialist."""
    title, note = "Highest lifts", "Descriptive only: too few documents to test whether these are more than chance."
    if tested:
        title, note = "Specialists", "Surest first; found on half of the documents, measured on the other half."
    return Table("specialists", title, SPECIALIST_COLUMNS, tuple(rows), note, TEXT_ROWS)


def layer_rows(result: Specialization, specialists: Sequence[Row]) -> Iterator[Row]:
    """Information about the domain, per layer."""
    found = result.layers
    for i, layer in enumerate(result.counts.layers):
        yield {
            "layer": layer.layer,
            "experts": layer.experts,
            "experts_per_token": layer.experts_per_token,
            "information_bits": float(result.observed_bits[i]),
            "excess_information_bits": float(found.information.excess_bits[i]) if found else None,
            "excess_low": float(found.low[i]) if found else None,
            "excess_high": float(found.high[i]) if found else None,
            "p_value": float(found.information.p_value[i]) if found else None,
            "null_low": float(found.information.null_bits[0, i]) if found else None,
            "null_high": float(found.information.null_bits[1, i]) if found else None,
            **_text_of_layer(result, i),
            "committee": len(result.committees.experts[i]),
            "committee_expected": float(result.committees.expected_experts[i]),
            "committee_coverage": float(result.committees.coverage[i]),
            "specialists": sum(row["layer"] == layer.layer for row in specialists) if found else None,
        }


def _text_of_layer(result: Specialization, place: int) -> Row:
    text = result.text
    vocabulary = text.vocabulary[place] if text else None
    return {
        "token_explained": text.token_explained[place] if text else None,
        "class_explained": text.class_explained[place] if text else None,
        "vocabulary": vocabulary.observed if vocabulary else None,
        "vocabulary_null": vocabulary.null if vocabulary else None,
    }


def divergence_rows(result: Specialization) -> Iterator[Row]:
    """How far the domains lie apart, beside halves of one; means over layers."""
    found = result.divergences
    for i, (first, second) in enumerate(found.pairs):
        values = {
            "divergence_bits": found.observed_bits[i],
            "halves_bits": found.between_bits[i],
            "control_bits": found.within_bits[i],
            "excess_bits": found.excess_bits[i],
        }
        names: Row = {"domain": result.counts.domains[first], "other": result.counts.domains[second]}
        yield names | {key: None if np.isnan(value).any() else float(value.mean()) for key, value in values.items()}


def domain_rows(trace: RoutingTrace, result: Specialization, specialists: Sequence[Row]) -> Iterator[Row]:
    """What each domain brought, and how surely its documents are named."""
    template = {item.domain: item.length for item in result.sample.templates}
    groups = result.counts.groups_of_domain()
    for i, domain in enumerate(result.counts.domains):
        p_value = float(result.neighbour_p_value[i])
        yield {
            "domain": domain,
            "documents": sum(document.domain == domain for document in trace.documents),
            "groups": int(groups[i]),
            "available_tokens": int(result.sample.available[i]),
            "tokens": int(result.counts.tokens[result.counts.domain == i].sum()),
            "template_tokens": template.get(domain, 0),
            "accuracy": float(result.classification.domain_accuracy[i]) if result.classification else None,
            "specialists": sum(row["domain"] == domain for row in specialists) if result.specialists else None,
            "neighbour_p_value": None if p_value != p_value else p_value,
        }
