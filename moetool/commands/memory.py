"""``moetool memory``: enters a model and what to assume, leaves a Report of what it costs.

Each section of the report is a file of its own (``memory_*.py``): a new one is a module with COLUMNS and a function,
and one line in ``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from moetool import __version__
from moetool.accounting.ledger import make_ledger
from moetool.checkpoint.locate import exists, locate
from moetool.checkpoint.types import Checkpoint
from moetool.commands import memory_compute, memory_context, memory_devices, memory_parts, memory_sources
from moetool.commands.memory_change import change_config
from moetool.commands.memory_compare import compare_finding, compare_table
from moetool.commands.memory_section import MemorySettings, Section, Subject
from moetool.errors import MoetoolError
from moetool.model.blueprint import ELSEWHERE, blueprint_tensors
from moetool.model.declared import as_declared
from moetool.model.facts import ModelFacts, facts_of
from moetool.model.families import experts_per_token_of
from moetool.model.inventory import take_inventory
from moetool.model.presets import PRESETS, preset_checkpoint
from moetool.report.report import Column, Report, Table, Value

SECTIONS: tuple[tuple[tuple[Column, ...], Callable[[Subject], Section]], ...] = (
    (memory_parts.COLUMNS, memory_parts.parts_section),
    (memory_sources.COLUMNS, memory_sources.sources_section),
    (memory_context.COLUMNS, memory_context.context_section),
    (memory_compute.COLUMNS, memory_compute.compute_section),
    (memory_devices.COLUMNS, memory_devices.devices_section),
)
SUMMARY_COLUMNS = tuple(column for columns, _ in SECTIONS for column in columns)
_ASSUMPTION_COLUMNS = (
    Column("assumption", "Assumption", "text"),
    Column("value", "Value", "text"),
    Column("source", "Source", "text"),
)


def report_memory(model: str, revision: str | None = None, settings: MemorySettings | None = None) -> Report:
    """What ``model`` costs, by the headers of its checkpoint or, where there is only a config, by a planned model.

    Raises MoetoolError where the model cannot be found, is damaged, or is only a config of an unknown architecture, and
    where a setting is impossible.
    """
    settings = settings or MemorySettings()
    checkpoint = find_model(model, revision)
    subject = make_subject(checkpoint, settings)
    other, name = None, ""
    if settings.changes:
        other, name = subject, "the unchanged model"
        subject = change_subject(subject, settings)
    if settings.compare is not None:
        other, name = make_subject(find_model(settings.compare, None), settings), settings.compare
    if other and settings.context is None:
        # Two defaults would compare two contexts; what both can do is comparable.
        cache = min(subject.cache, other.cache, key=lambda cache: cache.context_tokens)
        subject, other = replace(subject, cache=cache), replace(other, cache=cache)
    return build_report(subject, {"revision": revision, **_options(settings)}, other, name)


def find_model(model: str, revision: str | None = None) -> Checkpoint:
    """A preset, or whatever ``locate`` finds; what is on disk goes before a preset of the same name."""
    preset = model.lower()
    if exists(model) or "/" in model or model == "demo":
        return locate(model, revision)
    if preset in PRESETS:
        if revision is not None:
            raise MoetoolError(
                f"{model} is a preset: it has no revision {revision!r}",
                f"--revision goes with a hub id: {PRESETS[preset].hub_id}",
            )
        return preset_checkpoint(preset)
    near = get_close_matches(preset, PRESETS, n=3, cutoff=0.6)
    if near:
        raise MoetoolError(f"there is no model {model!r}: no such file, folder or preset", f"did you mean {near[0]}?")
    return locate(model, revision)


def change_subject(subject: Subject, settings: MemorySettings) -> Subject:
    """The model that the changed config describes; MoetoolError where there is no such model."""
    config = change_config(subject.checkpoint.config, settings.changes)
    what = " ".join(f"--set {change}" for change in settings.changes)
    try:
        changed = make_subject(replace(subject.checkpoint, config=config, tensors=()), settings)
    except MoetoolError as error:
        raise MoetoolError(
            f"{what}: {error.message}", "undo the change, or change what it does not agree with"
        ) from None
    for layer in changed.facts.moe_layers:
        chosen = experts_per_token_of(config, layer.layer)
        if not chosen or chosen > layer.experts:
            raise MoetoolError(f"{what}: a token cannot use {chosen or 0} of {layer.experts} experts")
    return changed


def read_facts(model: str, revision: str | None = None) -> ModelFacts:
    """Facts of a model: from headers where weights exist (no torch is imported), else from its config."""
    return make_subject(find_model(model, revision), MemorySettings()).facts


def make_subject(checkpoint: Checkpoint, settings: MemorySettings) -> Subject:
    """All that sections need to know of a model: from its headers, or from a model planned by its config."""
    source = "config" if all(tensor.file is None for tensor in checkpoint.tensors) else "header"
    if not checkpoint.tensors:
        checkpoint = _plan(checkpoint)
    if source == "config":
        stored = as_declared(checkpoint.tensors, checkpoint.config)
        checkpoint = checkpoint if stored is None else replace(checkpoint, tensors=stored)
    inventory = take_inventory(checkpoint.tensors, checkpoint.config)
    facts = facts_of(checkpoint, inventory, "header" if source == "header" else "config")
    cache = memory_context.cache_options(facts, settings)
    return Subject(checkpoint, inventory, facts, make_ledger(facts), cache, settings)


def _plan(checkpoint: Checkpoint) -> Checkpoint:
    """The tensors that a config means: those of transformers, or of a blueprint where it lacks the family."""
    if checkpoint.config.get("model_type") in ELSEWHERE:
        tensors = blueprint_tensors(checkpoint.config)
        if tensors:
            return replace(checkpoint, tensors=tensors)
    from moetool.model.meta import plan_checkpoint

    return plan_checkpoint(checkpoint)


def build_report(
    subject: Subject, options: Mapping[str, Value | list[str]], other: Subject | None = None, name: str = ""
) -> Report:
    """The report of a model, beside another one where there is one; ``options`` are repeated in it."""
    facts = subject.facts
    sections = [make(subject) for _, make in SECTIONS]
    summary = _summary(sections)
    beside = None if other is None else _summary([make(other) for _, make in SECTIONS])
    # What was asked for comes first: whether it fits, then the trade, then how things were counted.
    findings = [finding for section in reversed(sections) for finding in section.findings]
    findings = [*compare_finding(summary, beside, name), *findings]
    assumptions = tuple(
        {"assumption": what, "value": value, "source": source}
        for section in sections
        for what, value, source in section.assumptions
    )
    return Report(
        command="memory",
        model={"name": facts.name, "revision": facts.revision, "family": facts.family},
        options=dict(options),
        summary_columns=SUMMARY_COLUMNS,
        summary=summary,
        tables=(
            compare_table(SUMMARY_COLUMNS, summary, beside, name),
            *(table for section in sections for table in section.tables),
            Table("assumptions", "Assumptions", _ASSUMPTION_COLUMNS, assumptions),
        ),
        findings=tuple(sorted(findings, key=lambda finding: finding.level != "warning")),
        figures=tuple(figure for section in sections for figure in section.figures),
        environment={"moetool": __version__, "source": facts.source},
    )


def _summary(sections: list[Section]) -> dict[str, Value]:
    return {key: value for section in sections for key, value in section.summary.items()}


def _options(settings: MemorySettings) -> dict[str, Value | list[str]]:
    """What was asked for, without what was left at its default."""
    defaults = MemorySettings()
    found: dict[str, Value | list[str]] = {}
    for field in MemorySettings.__slots__:
        value = getattr(settings, field)
        if value != getattr(defaults, field):
            found[field] = list(value) if isinstance(value, tuple) else value
    return found
