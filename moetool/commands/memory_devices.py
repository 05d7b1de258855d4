"""The section of ``moetool memory`` on GPUs: what each rank holds, whether it fits, and what one GPU leaves outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from moetool.accounting.fit import ENGINE_SHARE, Fit, default_reserve, fit, parse_memory
from moetool.accounting.offload import OffloadPlan, plan_offload
from moetool.accounting.parallel import DeviceLoad, plan_devices
from moetool.accounting.split import Split, make_split
from moetool.checkpoint.types import TensorInfo
from moetool.commands.memory_section import Section, Subject
from moetool.errors import MoetoolError
from moetool.model.blueprint import blueprint_tensors
from moetool.model.families import indices
from moetool.report.report import Column, Finding, Table, Value
from moetool.report.values import write_value

COLUMNS = (
    Column("gpus", "GPUs", "count", detail=True, help="Of the split: tp x pp x dp."),
    Column("device_bytes", "Fullest GPU", "bytes", detail=True, help="Weights, cache and state of the fullest rank."),
    Column(
        "fits",
        "Fits",
        "text",
        detail=True,
        help="Whether every rank fits into --gpu-memory; a check is free_bytes < 0.",
    ),
    Column("free_bytes", "Free", "bytes", detail=True, help="Left on the fullest rank; negative by what is missing."),
    Column("largest_context", "Largest context", "count", detail=True, help="Tokens that fit at that batch."),
    Column("largest_batch", "Largest batch", "count", detail=True, help="Sequences of that context that fit."),
    Column("fewest_gpus", "Fewest GPUs", "count", detail=True, help="Of a split of the same kind that fits."),
    Column("offloaded_bytes", "Experts on the host", "bytes", detail=True, help="So that one GPU does."),
    Column(
        "bus_bytes_per_token",
        "Over the bus per token",
        "bytes",
        detail=True,
        help="If the chosen experts that lie on the host were copied for every token.",
    ),
)
_DEVICE_COLUMNS = (
    Column("rank", "Rank", "count"),
    Column("experts", "Experts", "count", help="Routed experts per MoE layer, replicas and shards included."),
    Column("routed_expert_bytes", "Routed", "bytes"),
    Column("other_weight_bytes", "Other", "bytes"),
    Column("weight_bytes", "Weights", "bytes"),
    Column("kv_cache_bytes", "Cache", "bytes", help="With states."),
    Column("total_bytes", "Total", "bytes"),
    Column("first_layer", "From", "count", help="First decoder layer of the rank's pipeline stage."),
    Column("last_layer", "To", "count", help="Last decoder layer of the rank's pipeline stage."),
)
_OFFLOAD_COLUMNS = (
    Column("what", "What", "text"),
    Column("value", "Value", "text"),
)
_MAP_COLUMNS = (
    Column("module", "Module", "text", help="Path in transformers' model; empty for all that is not named."),
    Column("device", "Device", "text"),
)
_TEXT_ROWS = 16


def devices_section(subject: Subject) -> Section:
    """One row per rank; fit and offload where the GPU's memory was given."""
    settings, facts, cache = subject.settings, subject.facts, subject.cache
    memory = None if settings.gpu_memory is None else parse_memory(settings.gpu_memory)
    split = _split(subject)
    rows = plan_devices(facts, split, cache)
    fullest = max(rows, key=lambda row: row.total_bytes)
    fitting = plan = None
    refusal = ""
    if memory is not None:
        reserve = default_reserve(memory)
        fitting = fit(facts, split, cache, memory, reserve)
        if split.gpus == 1:
            plan, refusal = _offload(subject, memory, reserve)
    asked = memory is not None or split.gpus > 1
    summary: dict[str, Value] = {
        "gpus": split.gpus,
        "device_bytes": fullest.total_bytes,
        "fits": None if fitting is None else fitting.fits,
        "free_bytes": fitting.free_bytes if fitting else None,
        "largest_context": fitting.largest_context if fitting else None,
        "largest_batch": fitting.largest_batch if fitting else None,
        "fewest_gpus": fitting.fewest.gpus if fitting and fitting.fewest else None,
        "offloaded_bytes": plan.host_bytes if plan else None,
        "bus_bytes_per_token": plan.bus_bytes_per_token if plan else None,
    }
    offload_rows = tuple({"what": what, "value": value} for what, value in _offload_rows(plan))
    tables = (
        Table(
            "devices",
            "GPUs",
            _DEVICE_COLUMNS,
            tuple(_row(row) for row in rows),
            _note(split),
            text_rows=_TEXT_ROWS,
            for_scripts=not asked,
            range_key="rank",
        ),
        Table("offload", "Experts on the host, for one GPU", _OFFLOAD_COLUMNS, offload_rows, optional=True),
        Table("device_map", "Device map for transformers", _MAP_COLUMNS, _device_map(plan), for_scripts=True),
    )
    findings = () if memory is None or fitting is None else tuple(_findings(subject, memory, fitting, plan, refusal))
    return Section(summary, tables, findings, (), _assumptions(memory))


def _offload(subject: Subject, memory: int, reserve: int) -> tuple[OffloadPlan | None, str]:
    """The plan, or why there is none."""
    try:
        return plan_offload(subject.facts, subject.cache, memory, reserve, _module_paths(subject)), ""
    except MoetoolError as error:
        return None, error.message


def _split(subject: Subject) -> Split:
    settings = subject.settings
    asked = (settings.tp or 1) * settings.pp * settings.dp
    gpus = settings.gpus if settings.gpus is not None else asked
    given = {"pp": settings.pp if settings.pp != 1 else None, "dp": settings.dp if settings.dp != 1 else None}
    return make_split(
        subject.facts, gpus, settings.tp, given["pp"], given["dp"], settings.ep, settings.redundant_experts
    )


def _row(load: DeviceLoad) -> Mapping[str, Value]:
    return {column.key: getattr(load, column.key) for column in _DEVICE_COLUMNS}


def _note(split: Split) -> str:
    return (
        f"{split.gpus:,} GPU{'s' * (split.gpus > 1)}: tp {split.tp} x pp {split.pp} x dp {split.dp}, ep {split.ep}"
        + (f", {split.redundant_experts} redundant experts." if split.redundant_experts else ".")
    )


def _flags(split: Split) -> str:
    """The options that ask for a split."""
    sizes = {"gpus": split.gpus, "tp": split.tp, "pp": split.pp, "dp": split.dp, "ep": split.ep}
    flags = [f"--{name} {size}" for name, size in sizes.items() if size > 1]
    flags += [f"--redundant-experts {split.redundant_experts}"] * bool(split.redundant_experts)
    return " ".join(flags) or "--gpus 1"


def _findings(subject: Subject, memory: int, fitting: Fit, plan: OffloadPlan | None, refusal: str) -> Iterator[Finding]:
    usable = write_value(memory - default_reserve(memory), "bytes")
    total = write_value(fitting.fullest.total_bytes, "bytes")
    longest = subject.facts.max_context
    if fitting.fits:
        limits = []
        if fitting.largest_context:
            allowed = f" (the config allows {longest:,})" if longest and fitting.largest_context > longest else ""
            limits.append(f"a context of up to {fitting.largest_context:,} tokens at this batch{allowed}")
        if fitting.largest_batch:
            limits.append(f"a batch of up to {fitting.largest_batch:,} at this context")
        also = f"; room for {' or '.join(limits)}" if limits else ""
        rank = fitting.fullest.rank
        message = f"Fits: rank {rank} is the fullest with {total} of the {usable} that can be used{also}."
        if subject.settings.training:
            message += " That is inference: training is not in it."
        yield Finding("info", "fits", message)
    else:
        missing = write_value(-fitting.free_bytes, "bytes")
        message = f"Does not fit: rank {fitting.fullest.rank} needs {total}, {missing} above the {usable} there are."
        if fitting.fewest:
            message += f" The fewest such GPUs are {fitting.fewest.gpus} ({_flags(fitting.fewest)})."
        yield Finding("warning", "does_not_fit", message)
    if plan and plan.offloaded_layers:
        size = write_value(plan.host_bytes, "bytes")
        message = (
            f"It does with the experts of {len(plan.offloaded_layers)} layers ({size}) on the host: see the table."
        )
        yield Finding("info", "offload", message)
    elif refusal:
        yield Finding("warning", "offload_impossible", f"Not even with all experts on the host: {refusal}.")


def _offload_rows(plan: OffloadPlan | None) -> Iterator[tuple[str, str]]:
    if plan is None or not plan.offloaded_layers:
        return
    layers = plan.offloaded_layers
    yield "layers with experts on the host", f"{layers[0]} to {layers[-1]} ({len(layers)})"
    yield "share of routed experts", f"{plan.host_share:.1%}".replace("%", " %")
    yield "on the GPU", write_value(plan.device_bytes, "bytes")
    yield "on the host", write_value(plan.host_bytes, "bytes")
    if plan.bus_bytes_per_token is not None:
        yield "fetched per token, if fetched", write_value(plan.bus_bytes_per_token, "bytes")
    yield "llama.cpp", plan.llama_cpp
    yield "llama.cpp, by name", plan.override_tensor
    if plan.device_map is not None:
        yield "transformers", "device_map: the table device_map of --json"


def _device_map(plan: OffloadPlan | None) -> tuple[Mapping[str, Value], ...]:
    if plan is None or plan.device_map is None:
        return ()
    return tuple({"module": module, "device": str(device)} for module, device in plan.device_map.items())


def _module_paths(subject: Subject) -> dict[int, str] | None:
    """Path of the module of routed experts by layer, as transformers calls it: a checkpoint may call it otherwise."""
    native = subject.checkpoint.tensors if subject.facts.source == "config" else None
    tensors = native or blueprint_tensors(subject.checkpoint.config)
    return _expert_modules(tensors) or None if tensors else None


def _expert_modules(tensors: Iterable[TensorInfo]) -> dict[int, str]:
    found = {}
    for tensor in tensors:
        head, cut, _ = tensor.name.partition(".experts.")
        layer = next(indices(head), None)
        if cut and layer is not None and "shared" not in head:
            found[layer] = f"{head}.experts"
    return found


def _assumptions(memory: int | None) -> tuple[tuple[str, str, str], ...]:
    if memory is None:
        return ()
    reserve = write_value(default_reserve(memory), "bytes")
    return (
        ("GPU memory", write_value(memory, "bytes"), "--gpu-memory"),
        ("kept free per GPU", reserve, f"engines use {float(ENGINE_SHARE):.0%} (vLLM's gpu_memory_utilization)"),
    )
