"""The section of ``moetool memory`` that holds headers against the config: both counts, and why they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moetool.accounting.ledger import Ledger, make_ledger
from moetool.checkpoint.types import Checkpoint
from moetool.commands.memory_section import Section, Subject
from moetool.errors import MoetoolError
from moetool.model.blueprint import blueprint_tensors
from moetool.model.facts import ModelFacts, model_facts
from moetool.report.report import Column, Finding, Table, Value

COLUMNS = (
    Column(
        "config_parameters",
        "By the config",
        "parameters",
        detail=True,
        help="Total that the config gives; undefined where it was not counted.",
    ),
    Column(
        "unexplained_parameters",
        "Unexplained",
        "parameters",
        detail=True,
        help="Of the differences between headers and config, those that nothing known explains.",
    ),
    Column(
        "stored_elements",
        "Stored elements",
        "parameters",
        detail=True,
        help="With multi-token prediction, second copies and correction biases: what a list of tensors adds up to.",
    ),
)
_COLUMNS = (
    Column("role", "Role", "text"),
    Column("header_parameters", "Headers", "parameters"),
    Column("config_parameters", "Config", "parameters"),
    Column("difference", "Difference", "count"),
    Column("explanation", "Because", "text"),
)
_UNEXPLAINED = "unexplained"


def sources_section(subject: Subject) -> Section:
    """Counts by role from both sources where headers were read and the config can be counted."""
    facts, ledger = subject.facts, subject.ledger
    planned = _count_config(subject) if facts.source == "header" else None
    rows = tuple(_rows(facts, ledger, *planned)) if planned else ()
    unexplained = sum(abs(_number(row["difference"])) for row in rows if row["explanation"] == _UNEXPLAINED)
    total = ledger.total.parameters
    summary: dict[str, Value] = {
        "config_parameters": total if facts.source == "config" else planned[1].total.parameters if planned else None,
        "unexplained_parameters": unexplained if planned else None,
        "stored_elements": total + ledger.parameters("mtp") + facts.copied_parameters + facts.correction_biases,
    }
    findings = tuple(_findings(facts, ledger, planned[1], rows, unexplained)) if planned else ()
    table = Table("sources", "Headers against config", _COLUMNS, rows, "Roles that differ.", optional=True)
    return Section(summary, (table,), findings)


def _count_config(subject: Subject) -> tuple[ModelFacts, Ledger] | None:
    """What the config says: by arithmetic where that is known for the family, by transformers on request."""
    checkpoint = subject.checkpoint
    tensors = blueprint_tensors(checkpoint.config)
    if tensors is not None:
        planned = Checkpoint(checkpoint.name, checkpoint.revision, checkpoint.config, tensors, None)
    elif subject.settings.check_config:
        from moetool.model.meta import plan_checkpoint

        planned = plan_checkpoint(checkpoint)
    else:
        return None
    try:
        facts = model_facts(planned, "config")
    except MoetoolError:
        return None
    return facts, make_ledger(facts)


def _rows(facts: ModelFacts, ledger: Ledger, planned: ModelFacts, expected: Ledger) -> Iterator[Mapping[str, Value]]:
    for role in sorted({*ledger.components, *expected.components}):
        header, config = ledger.parameters(role), expected.parameters(role)
        if header != config:
            yield {
                "role": role,
                "header_parameters": header,
                "config_parameters": config,
                "difference": header - config,
                "explanation": _explain(role, facts, planned),
            }


def _explain(role: str, facts: ModelFacts, planned: ModelFacts) -> str:
    if role == "mtp":
        return "multi-token prediction layers, which transformers does not build"
    if role == "vision":
        return "towers beside the text decoder, which were not counted from the config"
    experts, named = ([layer.experts for layer in source.moe_layers] for source in (facts, planned))
    if role in ("routed_experts", "router", "shared_experts", "dense_ffn") and experts != named:
        return f"{sum(experts):,} experts are stored, the config means {sum(named):,}"
    if role == "lm_head" and facts.tied_head != planned.tied_head:
        return "the head is tied in one and not in the other"
    if facts.layers != planned.layers:
        return f"{facts.layers} layers are stored, the config means {planned.layers}"
    return _UNEXPLAINED


def _findings(
    facts: ModelFacts, ledger: Ledger, expected: Ledger, rows: tuple[Mapping[str, Value], ...], unexplained: int
) -> Iterator[Finding]:
    total, config = ledger.total.parameters, expected.total.parameters
    parts = [f"Headers hold {total:,} parameters, the config means {config:,}"]
    parts += ["they agree in every role"] * (not rows)
    reasons = [f"{row['difference']:+,} {row['role']}: {row['explanation']}" for row in rows]
    parts += reasons
    beside = (
        (facts.copied_parameters, "second copies of embedding or head"),
        (facts.correction_biases, "router correction biases"),
    )
    stored = [f"{count:,} {what}" for count, what in beside if count]
    message = "; ".join(parts) + "."
    if stored:
        message += f" Stored but no parameters: {' and '.join(stored)}."
    scales = ledger.components.get("quantization")
    if scales:
        message += f" Scales and other aids of quantisation take {scales.bytes:,} bytes."
    yield Finding("warning" if unexplained else "info", "header_against_config", message)


def _number(value: Value) -> int:
    return value if isinstance(value, int) else 0
