"""The sentences of ``specialize``: a Specialization and its tables enter, Findings leave, the answer first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log2
from typing import cast

from moetool.report.report import Finding, Value
from moetool.report.values import write_percent
from moetool.statistics.significance import benjamini_hochberg
from moetool.statistics.specialization import FALSE_DISCOVERY_RATE, MINIMUM_GROUPS, Specialization

Rows = Sequence[Mapping[str, Value]]
SENTENCES = 4
"""Domains whose strongest specialist gets a sentence."""
DEPENDENT = 0.005
STRONG_LIFT = 1.5
UNEVEN_GROUPS = 3
CUT, UNEVEN = 1.25, 4
"""A domain this many times as large as the smallest one is worth a sentence, and a warning."""


def findings(
    result: Specialization,
    summary: Mapping[str, Value],
    tables: Mapping[str, Rows],
    ablated: bool,
) -> Iterator[Finding]:
    """About ten sentences for a reader who knows no documentation."""
    yield from _descriptive_only(result)
    yield from _specialists(result, summary, tables["specialists"])
    yield from _kinds(result, summary, tables["specialists"])
    yield from _translations(result)
    if ablated:
        yield from _ablation(tables["ablation"])
    yield from _patterns(tables["patterns"], tables["classes"])
    yield from _vocabulary(result, summary, tables["layers"])
    yield from _tasks(result, tables["tasks"])
    yield from _information(result, tables["layers"])
    yield from _accuracy(result, summary)
    yield from _control(result, summary)
    yield from _budget(result, tables["domains"])
    yield from _uneven_groups(result)
    yield from _templates(result, tables["domains"])
    yield from _dependent(tables["domains"])
    yield Finding("info", "not_shown", _not_shown(result, ablated))


def _not_shown(result: Specialization, ablated: bool) -> str:
    needed = "that an expert is needed (--ablate N asks)"
    if ablated:
        needed = "what fine-tuning or other texts would need"
    if result.kinds is None:
        return (
            f"What this does not show: {needed}; and why an expert is preferred. A specialist of a domain may follow "
            "its language, its words or a pattern such as digits or indentation."
        )
    translated = any(result.translations.values())
    language = "" if translated else ", and without the same texts in another language it may be one for the language"
    return (
        f"What this does not show: {needed}. A preference for the domain may still follow what no token class tells "
        f"(style, length of sentences){language}."
    )


def _documents(result: Specialization) -> str:
    """What the independent units are called: documents, unless some belong together."""
    return "documents" if int(result.counts.documents.max()) == 1 else "groups of documents"


def _descriptive_only(result: Specialization) -> Iterator[Finding]:
    if result.specialists is not None:
        return
    sizes = zip(result.counts.domains, result.counts.groups_of_domain(), strict=True)
    small = ", ".join(f"{name} has {size}" for name, size in sizes if size < MINIMUM_GROUPS)
    message = (
        f"Descriptive only: {small} independent {_documents(result)}, and a test needs {MINIMUM_GROUPS} in every "
        "domain. The lifts shown may be those of these texts alone; give more documents or leave small domains out."
    )
    yield Finding("warning", "descriptive_only", message)


def _specialists(result: Specialization, summary: Mapping[str, Value], rows: Rows) -> Iterator[Finding]:
    if result.specialists is None:
        return
    experts = result.counts.hits.shape[1]
    if not rows:
        message = (
            f"No expert surely prefers a domain: none of {summary['tested_preferences']:,} pairs of expert and domain "
            f"stood out on one half of the {_documents(result)} and again on the other half."
        )
        yield Finding("info", "no_specialists", message)
        return
    strong = sum(cast(float, row["lift_low"]) >= STRONG_LIFT for row in rows)
    message = (
        f"{summary['specialist_experts']:,} of {experts:,} experts prefer at least one domain: {len(rows):,} of "
        f"{summary['tested_preferences']:,} tested preferences (pairs of expert and domain) stood out on half of the "
        f"{_documents(result)} and again on the other half; {strong:,} are surely above {STRONG_LIFT} times the "
        "average over domains."
    )
    yield Finding("info", "specialists", message)
    strongest: dict[Value, Mapping[str, Value]] = {}
    for row in rows:
        strongest.setdefault(row["domain"], row)
    for row in list(strongest.values())[:SENTENCES]:
        message = (
            f"Expert {row['expert']} of layer {row['layer']} prefers {row['domain']}: chosen for "
            f"{write_percent(row['token_share'])} of that domain's tokens (an even share is "
            f"{write_percent(row['baseline'])}), {row['lift']:.1f} times the average over domains "
            f"(95 % interval {row['lift_low']:.1f} to {row['lift_high']:.1f})."
        )
        yield Finding("info", "specialist", message)


def _kinds(result: Specialization, summary: Mapping[str, Value], rows: Rows) -> Iterator[Finding]:
    """What is left of the preferences at equal token classes and tokens, with the commonest explanation."""
    if not result.kinds:
        if result.specialists is not None and len(rows):
            told = (
                "The trace has no text of its tokens: whether preferences follow words or patterns is not told apart."
            )
            yield Finding("info", "no_kinds", told)
        return
    counted = {kind: summary[f"{kind}_specialists"] for kind in ("domain", "mixed", "pattern", "language")}
    message = (
        f"Preferences that survive giving every domain the same mixture of token classes and, where enough tokens are "
        f"shared, comparing the same tokens only (for the domain): {counted['domain']:,} of {len(rows):,}. Mixed: "
        f"{counted['mixed']:,}; for a pattern of tokens: {counted['pattern']:,}; for the language: "
        f"{counted['language']:,}; too weak to tell: {sum(row['kind'] is None for row in rows):,}."
    )
    causes = [cast(str, row["explained_by"]) for row in rows if row["explained_by"]]
    if causes:
        most = max(sorted(set(causes)), key=causes.count)
        message += f" The commonest explanation is {_spoken(most)} ({causes.count(most):,})."
    yield Finding("info", "kinds", message)


def _translations(result: Specialization) -> Iterator[Finding]:
    names = result.counts.domains
    pairs = [
        f"{names[one]} and {names[other]}"
        for one, others in result.translations.items()
        for other in others
        if one < other
    ]
    if pairs:
        told = f"Taken as the same texts in two languages, by names and common tokens of groups: {'; '.join(pairs)}."
        yield Finding("info", "translations", told)


def _ablation(rows: Rows) -> Iterator[Finding]:
    """Whether the specialists that were masked are needed, and the clearest of them."""
    alone = [row for row in rows if "," not in str(row["experts"])]
    if not alone:
        yield Finding("warning", "nothing_to_mask", "--ablate masked nothing: no specialist was found or tested.")
        return
    counted = {verdict: sum(row["verdict"] == verdict for row in alone) for verdict in ("confirmed", "refuted")}
    message = (
        f"Specialists masked: {len(alone)}. Needed by their domain, more than by others and more than experts of like "
        f"load are (confirmed): {counted['confirmed']}; not so (refuted): {counted['refuted']}; unclear: "
        f"{len(alone) - sum(counted.values())}."
    )
    most = max(alone, key=lambda row: cast(float, row["rise_nats"]))
    message += (
        f" Most is lost without {most['experts']} (layer:expert): the loss of {most['domain']} rises by "
        f"{most['rise_nats']:.3f} nats per token, {most['beyond_others']:.3f} more than that of the other domains."
    )
    yield Finding("info", "ablation", message)


def _patterns(patterns: Rows, classes: Rows) -> Iterator[Finding]:
    """How many experts follow a kind of token wherever it occurs, and the clearest of them."""
    if not classes:
        return
    if not patterns:
        told = "No expert surely prefers a kind of token: few documents with a class can confirm little."
        yield Finding("info", "no_patterns", told)
        return
    experts = len({(row["layer"], row["expert"]) for row in patterns})
    first = patterns[0]
    kind = {row["token_class"]: row["meaning"] for row in classes}[first["token_class"]]
    message = (
        f"{experts:,} experts prefer a kind of token over the others of the same documents, whatever the domain; the "
        f"clearest is expert {first['expert']} of layer {first['layer']} for {_spoken(first['token_class'])} ({kind}): "
        f"{first['lift']:.1f} times as often (95 % interval {first['lift_low']:.1f} to {first['lift_high']:.1f})."
    )
    yield Finding("info", "patterns", message)


def _vocabulary(result: Specialization, summary: Mapping[str, Value], layers: Rows) -> Iterator[Finding]:
    """How much of what routing tells about the domain is which token it is."""
    known = [row for row in layers if row["token_explained"] is not None]
    if result.layers is None or not known:
        return
    least, most = (pick(known, key=lambda row: cast(float, row["token_explained"])) for pick in (min, max))
    message = (
        f"Token identity alone explains {write_percent(summary['token_explained'])} of the information about the "
        f"domain, from {write_percent(least['token_explained'])} in layer {least['layer']} to "
        f"{write_percent(most['token_explained'])} in layer {most['layer']}: learned on half of the documents, applied "
        "to the other. Words that only one domain has explain whatever it does."
    )
    yield Finding("info", "vocabulary", message)


def _spoken(name: Value) -> str:
    return str(name).replace("_", " ")


def _tasks(result: Specialization, rows: Rows) -> Iterator[Finding]:
    if result.tasks is None:
        return
    tasks = ", ".join(result.tasks.tasks)
    if not result.tasks.crossed:
        message = f"Tasks ({tasks}) cannot be told apart from domains: no domain has documents of all of them."
        yield Finding("warning", "tasks_not_crossed", message)
    elif result.task_specialists is None:
        message = (
            f"Tasks ({tasks}) are not tested: each needs {MINIMUM_GROUPS} groups in the domains that have them all."
        )
        yield Finding("warning", "few_task_documents", message)
    else:
        message = (
            f"Within the {len(result.tasks.crossed)} domains that have all of the tasks {tasks}, "
            f"{len(rows):,} preferences for a task stood out and were seen again."
        )
        yield Finding("info", "tasks", message)


def _information(result: Specialization, layers: Rows) -> Iterator[Finding]:
    if result.layers is None:
        return
    excess, domains = result.layers.information.excess_bits, len(result.counts.domains)
    above = int((benjamini_hochberg(result.layers.information.p_value) < FALSE_DISCOVERY_RATE).sum())
    most, least = layers[int(excess.argmax())], layers[int(excess.argmin())]
    message = (
        f"One routing choice tells {max(0.0, excess.mean()):.3f} bits about the domain beyond chance, mean over layers "
        f"(naming one of {domains} takes {log2(domains):.2f} bits): most in layer {most['layer']} "
        f"({most['excess_information_bits']:.3f}, 95 % interval {most['excess_low']:.3f} to "
        f"{most['excess_high']:.3f}), least in layer {least['layer']} ({least['excess_information_bits']:.3f}). It is "
        f"significant (q < {FALSE_DISCOVERY_RATE}) in {above} of {len(layers)} layers."
    )
    yield Finding("info", "information", message)


def _accuracy(result: Specialization, summary: Mapping[str, Value]) -> Iterator[Finding]:
    if result.classification is None:
        return
    message = (
        f"From the routing of a whole document alone, its domain is named right for "
        f"{write_percent(summary['document_accuracy'])} of the {_documents(result)}, each held out in turn "
        f"(chance {write_percent(summary['chance_accuracy'])})."
    )
    yield Finding("info", "document_accuracy", message)


def _control(result: Specialization, summary: Mapping[str, Value]) -> Iterator[Finding]:
    if result.specialists is None:
        return
    if result.control is None:
        message = f"No A/A control: to split one domain takes {2 * MINIMUM_GROUPS} independent {_documents(result)}."
        yield Finding("warning", "no_control", message)
        return
    found = result.control.specialists
    message = (
        f"A/A control: on {result.control.runs} random splits of a single domain into two, where there is nothing to "
        f"find, the same analysis found {found} preferences and "
        f"{max(0.0, result.control.excess_information_bits):.3f} bits beyond chance, and named the pretended domain "
        f"right for {write_percent(summary['control_accuracy'])} (chance 50 %)."
    )
    if found:
        message += " It should find none: be careful with the preferences above."
    yield Finding("warning" if found else "info", "control", message)


def _budget(result: Specialization, domains: Rows) -> Iterator[Finding]:
    by_size = sorted(domains, key=lambda row: cast(int, row["available_tokens"]))
    largest = by_size[-1]
    budget = result.sample.budget_tokens
    if cast(int, largest["available_tokens"]) < CUT * budget:
        return
    message = (
        f"Every domain counts {budget:,} tokens, so that all weigh alike ({by_size[0]['domain']} has the fewest; "
        f"{largest['domain']} has {largest['available_tokens']:,}, thinned at random in its longest documents)."
    )
    uneven = cast(int, largest["available_tokens"]) > UNEVEN * budget
    if uneven:
        message += f" More text for {by_size[0]['domain']} would sharpen everything."
    yield Finding("warning" if uneven else "info", "token_budget", message)


def _uneven_groups(result: Specialization) -> Iterator[Finding]:
    """Permutation tests need groups of like number or like spread (Chung and Romano 2013, 10.1214/13-AOS1090)."""
    groups = result.counts.groups_of_domain()
    if result.specialists is None or groups.max() <= UNEVEN_GROUPS * groups.min():
        return
    few, many = result.counts.domains[int(groups.argmin())], result.counts.domains[int(groups.argmax())]
    message = (
        f"{few} has {groups.min()} {_documents(result)} and {many} has {groups.max()}: if those of {few} differ more "
        "from each other, p values are too small and the information beyond chance too large. Give like "
        "numbers of both."
    )
    yield Finding("warning", "uneven_groups", message)


def _templates(result: Specialization, domains: Rows) -> Iterator[Finding]:
    documents = {row["domain"]: row["documents"] for row in domains}
    for template in result.sample.templates:
        seen = " (seen in their routing; the trace has no token ids)" if template.from_routing else ""
        tokens = "token" if template.length == 1 else f"{template.length} tokens"
        message = (
            f"{template.documents} of {documents[template.domain]} documents of {template.domain} start with the same "
            f"{tokens}{seen}: left out as a template, though it may still colour the tokens after it."
        )
        yield Finding("info", "template_masked", message)


def _dependent(domains: Rows) -> Iterator[Finding]:
    for row in domains:
        p_value = row["neighbour_p_value"]
        if isinstance(p_value, float) and p_value <= DEPENDENT:
            message = (
                f"Neighbouring documents of {row['domain']} are more alike than others, as excerpts of one work are: "
                "if they belong together, give them one 'group', or p values are too small and intervals too narrow."
            )
            yield Finding("warning", "dependent_groups", message)
