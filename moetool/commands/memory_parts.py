"""The section of ``moetool memory`` on what is stored: parameters and bytes by component, layer, type, ..."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from moetool.accounting.conventions import active_amounts, describe
from moetool.accounting.ledger import Ledger
from moetool.commands.memory_findings import findings_of
from moetool.commands.memory_section import BYTES, PARAMETERS, SHARE, Section, Subject
from moetool.model.families import MTP_LIKE_LAST_LAYER, find, per_layer
from moetool.model.inventory import expert_of
from moetool.model.presets import PRESETS
from moetool.report.report import Column, Finding, Table, Value

COLUMNS = (
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
    Column(
        "mtp_parameters",
        "Multi-token prediction",
        "parameters",
        help="Not in the total; undefined where a config declares what is not known.",
    ),
    Column(
        "total_bytes", "Stored bytes", "bytes", help="All tensors, with scales, buffers and multi-token prediction."
    ),
    Column("active_bytes_per_token", "Active bytes per token", "bytes", help="Stored bytes of the active parameters."),
    Column("sparsity", "Active share", "share", help="active_parameters / total_parameters; 1 would be a dense model."),
    Column("moe_layers", "MoE layers", "count"),
    Column("experts", "Experts per layer", "count", help="Routed; undefined where layers differ."),
    Column("experts_per_token", "Experts per token", "count", help="Routed; undefined where layers differ."),
)
_LAYER_COLUMNS = (
    Column("layer", "Layer", "count"),
    Column("kind", "Kind", "text", help="moe, dense or mtp (multi-token prediction)."),
    PARAMETERS,
    Column("active_parameters", "Active", "parameters"),
    BYTES,
    Column("experts", "Experts", "count"),
    Column("experts_per_token", "Per token", "count"),
)
_ROLE = Column("role", "Role", "text")
_DTYPE = Column("dtype", "Dtype", "text")
_TENSOR_COLUMNS = (
    Column("tensor", "Tensor", "text"),
    _ROLE,
    Column("layer", "Layer", "count", help="Decoder layer."),
    Column("expert", "Expert", "count", help="Undefined for a tensor that holds all experts, or none."),
    PARAMETERS,
    BYTES,
    _DTYPE,
    Column("scheme", "Scheme", "text", help="How parameters are packed or scaled; undefined for plain numbers."),
    Column("file", "File", "text", detail=True),
)
_EXPERT_COLUMNS = (
    Column("layer", "Layer", "count"),
    Column("expert", "Expert", "count", help="Undefined where a layer's experts are stored together: then their mean."),
    PARAMETERS,
    BYTES,
    Column("dtypes", "Dtypes", "text"),
)
_TEXT_ROWS = 40


def parts_section(subject: Subject) -> Section:
    """The contract's counts, and the breakdowns; those by tensor and by expert have rows where they were asked for."""
    facts, ledger, settings = subject.facts, subject.ledger, subject.settings
    tables = (
        _components(ledger, settings.shows("component")),
        _layers(ledger, settings.shows("layer")),
        _dtypes(ledger, settings.shows("dtype")),
        _table("tensors", "Tensors", _TENSOR_COLUMNS, _tensors(subject), "tensor" in settings.by),
        _table("experts", "Experts", _EXPERT_COLUMNS, _experts(subject), "expert" in settings.by, _TOGETHER),
    )
    return Section(_summary(subject), tables, (*_published(subject), *_uncounted(subject), *findings_of(facts, ledger)))


def _published(subject: Subject) -> Iterator[Finding]:
    """What the publisher of a known model wrote, and in which convention."""
    facts, ledger = subject.facts, subject.ledger
    known = (preset for preset in PRESETS.values() if facts.name in (preset.name, preset.hub_id))
    preset = next(known, None)
    if preset is None or preset.published_active is None or subject.settings.changes:
        return
    convention = describe(preset.published_active, active_amounts(ledger))
    counted = f"counted as: {convention}" if convention else "which none of the conventions gives"
    total = f"{preset.published_total} in total and " if preset.published_total else ""
    message = f"Published: {total}{preset.published_active} active, {counted} ({preset.source})."
    yield Finding("info", "published", message)


_TOGETHER = "Experts that a layer stores together: one row, with the mean of them."


def _table(
    key: str, title: str, columns: tuple[Column, ...], rows: Iterator[Mapping[str, Value]], wanted: bool, note: str = ""
) -> Table:
    if not wanted:
        return Table(key, title, columns, (), optional=True)
    return Table(key, title, columns, tuple(rows), note, text_rows=_TEXT_ROWS, range_key="expert")


def _summary(subject: Subject) -> dict[str, Value]:
    facts, ledger = subject.facts, subject.ledger
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
        "mtp_parameters": _mtp_parameters(subject),
        "total_bytes": ledger.total.bytes,
        "active_bytes_per_token": ledger.active_bytes,
        "sparsity": active / total if sparse and active is not None else None,
        "moe_layers": len(facts.moe_layers),
        "experts": experts.pop() if len(experts) == 1 else None,
        "experts_per_token": experts_per_token.pop() if len(experts_per_token) == 1 else None,
    }


def _declared_mtp(subject: Subject) -> int:
    """Layers of multi-token prediction that only a config declares: transformers builds none."""
    if subject.facts.source == "header":
        return 0
    return per_layer(find(subject.checkpoint.config, "num_nextn_predict_layers", "mtp_num_hidden_layers"), 0) or 0


def _mtp_parameters(subject: Subject) -> int | None:
    """Parameters of multi-token prediction: stored ones, or those that a config means; None where that is not known."""
    layers, hidden = _declared_mtp(subject), subject.facts.hidden_size
    if not layers:
        return subject.ledger.parameters("mtp")
    if subject.facts.family not in MTP_LIKE_LAST_LAYER or hidden is None:
        return None
    return layers * (subject.ledger.layers[-1].parameters + 2 * hidden * hidden + 3 * hidden)


def _uncounted(subject: Subject) -> Iterator[Finding]:
    layers, parameters = _declared_mtp(subject), _mtp_parameters(subject)
    if layers:
        size = "are not counted" if parameters is None else f"hold {parameters:,} parameters"
        message = (
            f"The config declares multi-token prediction ({layers} layer{'s' * (layers > 1)}), which transformers does "
            f"not build: its weights {size}, and no bytes are planned for them."
        )
        yield Finding("info", "mtp_not_planned", message)


def _components(ledger: Ledger, shown: bool) -> Table:
    rows = tuple(
        {"role": role, "parameters": amount.parameters, "bytes": amount.bytes, "share": _share(amount.bytes, ledger)}
        for role, amount in ledger.components.items()
    )
    note = (
        "quantization: scales and zero points, which are bytes but no parameters."
        if "quantization" in ledger.components
        else ""
    )
    columns = (_ROLE, PARAMETERS, BYTES, SHARE)
    return Table("components", "Components", columns, rows, note, for_scripts=not shown)


def _layers(ledger: Ledger, shown: bool) -> Table:
    rows = tuple({column.key: getattr(cost, column.key) for column in _LAYER_COLUMNS} for cost in ledger.layers)
    return Table("layers", "Layers", _LAYER_COLUMNS, rows, text_rows=12, for_scripts=not shown, range_key="layer")


def _dtypes(ledger: Ledger, shown: bool) -> Table:
    rows = tuple(
        {"dtype": dtype, "parameters": amount.parameters, "bytes": amount.bytes, "share": _share(amount.bytes, ledger)}
        for dtype, amount in ledger.dtypes.items()
    )
    columns = (_DTYPE, PARAMETERS, BYTES, SHARE)
    return Table("dtypes", "Stored types", columns, rows, for_scripts=not shown)


def _share(size: int, ledger: Ledger) -> float | None:
    return size / ledger.total.bytes if ledger.total.bytes else None


def _tensors(subject: Subject) -> Iterator[Mapping[str, Value]]:
    for tensor, kind in zip(subject.checkpoint.tensors, subject.inventory.kind_of, strict=True):
        yield {
            "tensor": tensor.name,
            "role": kind.role,
            "layer": kind.layer,
            "expert": expert_of(tensor.name),
            "parameters": kind.parameters,
            "bytes": tensor.size_bytes,
            "dtype": tensor.dtype,
            "scheme": kind.scheme or None,
            "file": tensor.file,
        }


def _experts(subject: Subject) -> Iterator[Mapping[str, Value]]:
    """One row per expert; where a layer's experts are stored together, one with the mean of them."""
    sums: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    dtypes: dict[tuple[int, int], set[str]] = defaultdict(set)
    fused: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for tensor, kind in zip(subject.checkpoint.tensors, subject.inventory.kind_of, strict=True):
        if kind.owner != "routed_experts" or kind.layer is None:
            continue
        expert = expert_of(tensor.name)
        key = (kind.layer, -1 if expert is None else expert)
        target = fused[kind.layer] if expert is None else sums[key]
        target[0] += kind.parameters
        target[1] += tensor.size_bytes
        dtypes[key].add(tensor.dtype)
    experts_of = {layer.layer: layer.experts for layer in subject.facts.moe_layers}
    for layer, (parameters, size) in fused.items():
        experts = experts_of[layer]
        sums[layer, -1] = [parameters // experts, size // experts]
    for key in sorted(sums):
        parameters, size = sums[key]
        yield {
            "layer": key[0],
            "expert": None if key[1] < 0 else key[1],
            "parameters": parameters,
            "bytes": size,
            "dtypes": " ".join(sorted(dtypes[key])),
        }
