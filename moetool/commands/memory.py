"""``moetool memory``: enters a model, leaves a Report of its parameters and bytes, from headers or from a config."""

from __future__ import annotations

from collections.abc import Mapping

from moetool import __version__
from moetool.accounting.ledger import Ledger, make_ledger
from moetool.checkpoint.locate import locate
from moetool.commands.memory_findings import findings_of
from moetool.model.facts import ModelFacts, model_facts
from moetool.report.report import Column, Report, Table, Value

SUMMARY_COLUMNS = (
    Column("total_parameters", "Total parameters", "parameters", help="Without multi-token prediction layers."),
    Column(
        "active_parameters", "Active parameters", "parameters", help="Per token: all but routed experts, of these K/E."
    ),
    Column("active_parameters_no_embedding", "Active, no embedding", "parameters", help="Without the input embedding."),
    Column(
        "active_parameters_no_embedding_no_head",
        "Active, no embedding, no head",
        "parameters",
        help="Without input embedding and output head (one matrix where they are tied).",
    ),
    Column("routed_expert_parameters", "Routed experts", "parameters"),
    Column("shared_expert_parameters", "Shared experts", "parameters"),
    Column("mtp_parameters", "Multi-token prediction", "parameters", help="Not in the total."),
    Column(
        "total_bytes", "Stored bytes", "bytes", help="All tensors, with scales, buffers and multi-token prediction."
    ),
    Column("active_bytes_per_token", "Active bytes per token", "bytes", help="Stored bytes of the active parameters."),
    Column("sparsity", "Active share", "share", help="active_parameters / total_parameters; 1 would be a dense model."),
    Column("moe_layers", "MoE layers", "count"),
    Column("experts", "Experts per layer", "count", help="Routed; undefined where layers differ."),
    Column("experts_per_token", "Experts per token", "count", help="Routed; undefined where layers differ."),
)
_PARAMETERS = Column("parameters", "Parameters", "parameters")
_BYTES = Column("bytes", "Bytes", "bytes")
_SHARE = Column("share", "Share of bytes", "share")
_LAYER_COLUMNS = (
    Column("layer", "Layer", "count"),
    Column("kind", "Kind", "text", help="moe, dense or mtp (multi-token prediction)."),
    _PARAMETERS,
    Column("active_parameters", "Active", "parameters"),
    _BYTES,
    Column("experts", "Experts", "count"),
    Column("experts_per_token", "Per token", "count"),
)


def report_memory(model: str, revision: str | None = None) -> Report:
    """What ``model`` costs, by the headers of its checkpoint or, where there is only a config, by a planned model.

    Raises MoetoolError where the model cannot be found, is damaged, or is only a config of an unknown architecture.
    """
    return build_report(read_facts(model, revision), {"revision": revision})


def read_facts(model: str, revision: str | None = None) -> ModelFacts:
    """Facts of a model: from headers where weights exist (no torch is imported), else from its config."""
    checkpoint = locate(model, revision)
    if checkpoint.tensors:
        return model_facts(checkpoint, "header")
    from moetool.model.meta import plan_checkpoint

    return model_facts(plan_checkpoint(checkpoint), "config")


def build_report(facts: ModelFacts, options: Mapping[str, Value]) -> Report:
    """The report of a model's facts; ``options`` are repeated in it."""
    ledger = make_ledger(facts)
    return Report(
        command="memory",
        model={"name": facts.name, "revision": facts.revision, "family": facts.family},
        options=dict(options),
        summary_columns=SUMMARY_COLUMNS,
        summary=_summary(facts, ledger),
        tables=(_components(ledger), _layers(ledger), _dtypes(ledger)),
        findings=findings_of(facts, ledger),
        environment={"moetool": __version__, "source": facts.source},
    )


def _summary(facts: ModelFacts, ledger: Ledger) -> dict[str, Value]:
    total, active = ledger.total.parameters, ledger.active_parameters
    sparse = bool(facts.moe_layers) and active is not None and total > 0
    experts = {layer.experts for layer in facts.moe_layers}
    experts_per_token = {layer.experts_per_token for layer in facts.moe_layers}
    return {
        "total_parameters": total,
        "active_parameters": active,
        "active_parameters_no_embedding": ledger.active_parameters_no_embedding,
        "active_parameters_no_embedding_no_head": ledger.active_parameters_no_embedding_no_head,
        "routed_expert_parameters": ledger.parameters("routed_experts"),
        "shared_expert_parameters": ledger.parameters("shared_experts"),
        "mtp_parameters": ledger.parameters("mtp"),
        "total_bytes": ledger.total.bytes,
        "active_bytes_per_token": ledger.active_bytes,
        "sparsity": active / total if sparse and active is not None else None,
        "moe_layers": len(facts.moe_layers),
        "experts": experts.pop() if len(experts) == 1 else None,
        "experts_per_token": experts_per_token.pop() if len(experts_per_token) == 1 else None,
    }


def _components(ledger: Ledger) -> Table:
    rows = tuple(
        {"role": role, "parameters": amount.parameters, "bytes": amount.bytes, "share": _share(amount.bytes, ledger)}
        for role, amount in ledger.components.items()
    )
    note = (
        "quantization: scales and zero points, which are bytes but no parameters."
        if "quantization" in ledger.components
        else ""
    )
    return Table("components", "Components", (Column("role", "Role", "text"), _PARAMETERS, _BYTES, _SHARE), rows, note)


def _layers(ledger: Ledger) -> Table:
    rows = tuple(
        {
            "layer": cost.layer,
            "kind": cost.kind,
            "parameters": cost.parameters,
            "active_parameters": cost.active_parameters,
            "bytes": cost.bytes,
            "experts": cost.experts,
            "experts_per_token": cost.experts_per_token,
        }
        for cost in ledger.layers
    )
    return Table("layers", "Layers", _LAYER_COLUMNS, rows, text_rows=12, range_key="layer")


def _dtypes(ledger: Ledger) -> Table:
    rows = tuple(
        {"dtype": dtype, "parameters": amount.parameters, "bytes": amount.bytes, "share": _share(amount.bytes, ledger)}
        for dtype, amount in ledger.dtypes.items()
    )
    return Table("dtypes", "Stored types", (Column("dtype", "Dtype", "text"), _PARAMETERS, _BYTES, _SHARE), rows)


def _share(size: int, ledger: Ledger) -> float | None:
    return size / ledger.total.bytes if ledger.total.bytes else None
