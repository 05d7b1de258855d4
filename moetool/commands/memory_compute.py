"""The section of ``moetool memory`` on work: FLOPs, bytes read per token, the dense models beside it, and training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moetool.accounting.compute import (
    OPTIMIZERS,
    TRAINING_FLOPS_PER_PARAMETER,
    ComponentCost,
    Equivalent,
    TrainingCost,
    component_costs,
    equivalents,
    total_flops,
    training_costs,
)
from moetool.accounting.traffic import Loads, Step, decode_step
from moetool.commands.memory_section import BYTES, PARAMETERS, Section, Subject
from moetool.errors import MoetoolError
from moetool.model.facts import ModelFacts
from moetool.report.report import Column, Figure, Finding, Panel, Table, Value
from moetool.report.values import write_value

BATCHES = (1, 4, 16, 64, 256)
"""Rows of the table of traffic, beside the batch asked for."""
COLUMNS = (
    Column("flops_per_token", "FLOPs per token", "flops", help="Of one decoded token at that context."),
    Column(
        "prefill_flops", "Prefill FLOPs", "flops", detail=True, help="Of reading one context; the head for one token."
    ),
    Column(
        "decode_bytes_per_token",
        "Read per token",
        "bytes",
        help="Weights and cache read from memory per decoded token of the batch.",
    ),
    Column(
        "distinct_experts",
        "Distinct experts",
        "number",
        detail=True,
        help="Experts of a layer that a step of the batch uses, mean; K for one token.",
    ),
    Column(
        "training_flops_per_token",
        "Training FLOPs per token",
        "flops",
        detail=True,
        help="6 x active parameters (forward 2, backward 4), without attention to the context.",
    ),
    Column(
        "training_bytes",
        "Training memory",
        "bytes",
        detail=True,
        help="Weights, gradients and optimizer states with --training, without activations.",
    ),
)
_COMPUTE_COLUMNS = (
    Column("component", "Component", "text"),
    Column("parameters", "Multiplied", "parameters", help="Parameters that a token is multiplied with."),
    Column("decode_flops", "FLOPs per token", "flops", help="Of one decoded token at the context."),
    Column("decode_share", "Share", "share"),
    Column("prefill_flops", "Prefill FLOPs", "flops", help="Of reading the whole context once."),
)
_TRAFFIC_COLUMNS = (
    Column("batch", "Batch", "count"),
    Column("distinct_experts", "Distinct experts", "number", help="Per layer and step, mean over layers."),
    Column("weight_bytes", "Weights per step", "bytes"),
    Column("cache_bytes", "Cache per step", "bytes"),
    Column("bytes_per_token", "Read per token", "bytes"),
)
_EQUIVALENT_COLUMNS = (
    Column("model", "Model", "text"),
    PARAMETERS,
    Column("weight_bytes", "Weights", "bytes"),
    Column("flops_per_token", "FLOPs per token", "flops"),
)
_TRAINING_COLUMNS = (
    Column("part", "Part", "text"),
    Column("bytes_per_parameter", "Bytes each", "count"),
    BYTES,
)


def compute_section(subject: Subject) -> Section:
    """FLOPs by component, bytes per step by batch, dense equivalents and, on request, training."""
    facts, ledger, cache = subject.facts, subject.ledger, subject.cache
    training = _training(subject)
    measured = _measured(facts, subject.settings.traces)
    # Without its attention a model's work is not known either: undefined, not too small.
    costs = component_costs(facts, cache.context_tokens) if facts.mixers else None
    batches = sorted({*BATCHES, cache.batch}) if facts.mixers else []
    steps = [decode_step(facts, replace(cache, batch=batch), measured) for batch in batches]
    step = next((step for step in steps if step and step.batch == cache.batch), None)
    decode, prefill = total_flops(costs or ())
    active = ledger.active_parameters
    summary: dict[str, Value] = {
        "flops_per_token": decode if costs else None,
        "prefill_flops": prefill if costs else None,
        "decode_bytes_per_token": step.bytes_per_token if step else None,
        "distinct_experts": step.distinct_experts if step else None,
        "training_flops_per_token": None if active is None else TRAINING_FLOPS_PER_PARAMETER * active,
        "training_bytes": sum(part.bytes for part in training) if training else None,
    }
    models: list[Equivalent] = []
    if costs and facts.moe_layers and active is not None and ledger.active_bytes is not None:
        total = (ledger.total.parameters, ledger.total.bytes)
        models = equivalents(facts, total, (active, ledger.active_bytes), decode)
    return Section(
        summary,
        (
            Table("compute", "Compute", _COMPUTE_COLUMNS, tuple(_cost_rows(costs or (), decode))),
            Table("traffic", "Memory read while decoding", _TRAFFIC_COLUMNS, tuple(_step_row(s) for s in steps if s)),
            Table(
                "equivalents",
                "Dense models beside it",
                _EQUIVALENT_COLUMNS,
                tuple(map(_equivalent_row, models)),
                optional=True,
            ),
            Table(
                "training",
                "Training memory",
                _TRAINING_COLUMNS,
                tuple(
                    {"part": part.part, "bytes_per_parameter": part.bytes_per_parameter, "bytes": part.bytes}
                    for part in training
                ),
                optional=True,
            ),
        ),
        (*_training_finding(subject, training), *_trade(models)),
        tuple(_picture(models)),
        _assumptions(subject, measured is not None),
    )


def _training(subject: Subject) -> tuple[TrainingCost, ...]:
    optimizer = subject.settings.training
    if optimizer is None:
        return ()
    if optimizer not in OPTIMIZERS:
        raise MoetoolError(f"--training {optimizer} is unknown", f"it is one of {', '.join(OPTIMIZERS)}")
    return training_costs(subject.ledger.total.parameters + subject.ledger.parameters("mtp"), optimizer)


def _training_finding(subject: Subject, training: Sequence[TrainingCost]) -> Iterator[Finding]:
    if training:
        size = write_value(sum(part.bytes for part in training), "bytes")
        parts = f"{size} for weights, gradients and optimizer states, over all GPUs; activations come on top"
        yield Finding("info", "training", f"Training with {subject.settings.training}: {parts}.")


def _measured(facts: ModelFacts, folders: Sequence[str]) -> tuple[Loads, int] | None:
    """Loads of the experts in recorded traces; None without any. MoetoolError where they are of another model."""
    if not folders:
        return None
    import numpy as np

    from moetool.capture.join import join_traces
    from moetool.capture.trace import open_trace

    trace = join_traces([open_trace(Path(folder)) for folder in folders])
    recorded = {layer.layer: (layer.experts, layer.experts_per_token) for layer in trace.layers}
    meant = {layer.layer: (layer.experts, layer.experts_per_token) for layer in facts.moe_layers}
    if not recorded.items() <= meant.items():
        raise MoetoolError(
            f"--trace {folders[0]} is of {trace.model.get('name')}: it has other layers or experts than {facts.name}",
            "give a trace of the same model",
        )
    counted = trace.counted
    loads = {
        layer.layer: np.bincount(layer.chosen[counted].ravel(), minlength=layer.experts).tolist()
        for layer in trace.layers
    }
    return loads, int(counted.sum())


def _cost_rows(costs: Sequence[ComponentCost], decode: int) -> Iterator[dict[str, Value]]:
    for cost in costs:
        yield {
            "component": cost.component,
            "parameters": cost.parameters,
            "decode_flops": cost.decode_flops,
            "decode_share": cost.decode_flops / decode if decode else None,
            "prefill_flops": cost.prefill_flops,
        }


def _step_row(step: Step) -> dict[str, Value]:
    return {column.key: getattr(step, column.key) for column in _TRAFFIC_COLUMNS}


def _equivalent_row(model: Equivalent) -> dict[str, Value]:
    return {
        "model": model.name,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "flops_per_token": model.flops_per_token,
    }


def _trade(models: Sequence[Equivalent]) -> Iterator[Finding]:
    """The trade of a mixture in two sentences: memory for all, compute for few."""
    if not models:
        return
    this, compute, memory = models
    yield Finding(
        "info",
        "memory_for_all",
        f"Memory for all: every expert is loaded, {this.parameters / compute.parameters:.1f} times the parameters of a "
        "dense model that costs the same compute.",
    )
    yield Finding(
        "info",
        "compute_for_few",
        f"Compute for few: a token costs {this.flops_per_token / memory.flops_per_token:.1%} of what it would in a "
        "dense model of the same size.".replace("%", " %"),
    )


def _picture(models: Sequence[Equivalent]) -> Iterator[Figure]:
    if not models:
        return
    memory = models[-1]
    names = ("this MoE", "as costly", "as large")
    sizes = tuple(model.weight_bytes / memory.weight_bytes for model in models)
    work = tuple(model.flops_per_token / memory.flops_per_token for model in models)
    yield Figure(
        "trade",
        "Memory and compute beside dense models as costly and as large",
        "bars",
        f"This model has the memory of the large dense model and {work[0]:.1%} of its compute per token; the small "
        f"dense model of equal compute has {sizes[1]:.1%} of the memory.".replace("%", " %"),
        (Panel("memory for weights", names, (("share", sizes),)), Panel("FLOPs per token", names, (("share", work),))),
        y_title="of the dense one as large",
        in_text=True,
    )


def _assumptions(subject: Subject, measured: bool) -> tuple[tuple[str, str, str], ...]:
    choice = ("uniform", "E (1 - (1 - K/E)^batch) distinct experts; --trace measures them")
    if measured:
        choice = ("measured", "tokens of --trace drawn at random")
    found = [
        ("FLOPs", "2 per multiply-add", "matrix products, attention and states; no norms, softmax, activations"),
        ("choice of experts", *choice),
    ]
    if subject.settings.training:
        found.append(("training", subject.settings.training, "mixed precision as in arXiv:1910.02054, no activations"))
    return tuple(found)
