"""``moetool models``: nothing enters, a Report of presets and families leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moetool import __version__
from moetool.accounting.conventions import active_amounts, describe
from moetool.accounting.ledger import make_ledger
from moetool.model.facts import ModelFacts, model_facts
from moetool.model.families import ENGINES, FAMILIES, Family
from moetool.model.presets import PRESETS, Preset, preset_checkpoint
from moetool.report.report import Column, Report, Table, Value

SUMMARY_COLUMNS = (
    Column("presets", "Presets", "count", help="Published models whose facts are built in."),
    Column("families", "Families of presets", "count"),
    Column("exact_families", "Exact families", "count", help="Checked bit for bit in both engines."),
    Column("restricted_families", "Restricted families", "count", help="Not every engine runs them, or none does."),
    Column("refused_families", "Refused families", "count", help="Their routing cannot be captured yet."),
)
_PRESET_COLUMNS = (
    Column("name", "Preset", "text", help="What MODEL may be."),
    Column("family", "Family", "text", detail=True),
    Column("total_parameters", "Total", "parameters", help="Without multi-token prediction and towers."),
    Column("active_parameters", "Active", "parameters", help="Per token: all but routed experts, of these K/E."),
    Column("ratio", "Ratio", "ratio", help="total_parameters / active_parameters; 1 would be a dense model."),
    Column("experts", "Experts", "count", help="Routed, per layer; undefined where layers differ."),
    Column("experts_per_token", "Per token", "count", help="Routed; undefined where layers differ."),
    Column("shared_experts", "Shared", "count", help="Used by every token; undefined where layers differ."),
    Column("moe_layers", "MoE layers", "count"),
    Column("published_total", "Published", "text", help="Total as the publisher wrote it."),
    Column("published_active", "Published active", "text", help="Active as the publisher wrote it."),
    Column(
        "active_convention",
        "Counted",
        "text",
        help="Conventions that give the published active figure, rounded or else truncated; undefined if none does.",
    ),
    Column("source", "Source", "text", detail=True, help="Where the figures are published."),
)
_FAMILY_COLUMNS = (
    Column("family", "Family", "text"),
    Column("engines", "Engines", "text", help="What captures its routing."),
    Column("scoring", "Scoring", "text", detail=True, help="How its router's distribution comes from the logits."),
    Column("checked", "Checked", "text", help="Against plain transformers, with random checkpoints."),
)


def report_models() -> Report:
    """Presets with their counts, and families with how each was checked; neither torch nor a network is needed."""
    presets = tuple(_preset_row(preset) for preset in PRESETS.values())
    families = tuple(_family_row(family) for family in sorted(FAMILIES.values(), key=_most_restricted_first))
    return Report(
        command="models",
        model={"name": "presets and families", "revision": None, "family": None},
        options={},
        summary_columns=SUMMARY_COLUMNS,
        summary={
            "presets": len(presets),
            "families": len({row["family"] for row in presets}),
            "exact_families": sum(family.engine == "any" for family in FAMILIES.values()),
            "restricted_families": sum(family.engine != "any" for family in FAMILIES.values()),
            "refused_families": sum(family.engine == "refused" for family in FAMILIES.values()),
        },
        tables=(
            Table("presets", "Presets", _PRESET_COLUMNS, presets),
            Table("families", "Families", _FAMILY_COLUMNS, families, text_rows=8),
        ),
        environment={"moetool": __version__},
    )


def _preset_row(preset: Preset) -> Mapping[str, Value]:
    facts = model_facts(preset_checkpoint(preset.name), "config")
    ledger = make_ledger(facts)
    total, active = ledger.total.parameters, ledger.active_parameters
    return {
        "name": preset.name,
        "family": facts.family,
        "total_parameters": total,
        "active_parameters": active,
        "ratio": total / active if active else None,
        **_experts(facts),
        "published_total": preset.published_total,
        "published_active": preset.published_active,
        "active_convention": describe(preset.published_active, active_amounts(ledger)),
        "source": preset.source,
    }


def _most_restricted_first(family: Family) -> tuple[int, str]:
    return list(ENGINES).index(family.engine), family.name


def _family_row(family: Family) -> Mapping[str, Value]:
    outcome = {"any": "exact in both engines", "resident": "exact, resident only: ", "refused": "refused: "}
    return {
        "family": family.name,
        "engines": ENGINES[family.engine],
        "scoring": family.scoring,
        "checked": outcome[family.engine] + family.reason,
    }


def _experts(facts: ModelFacts) -> Mapping[str, Value]:
    return {
        "experts": _common(layer.experts for layer in facts.moe_layers),
        "experts_per_token": _common(layer.experts_per_token for layer in facts.moe_layers),
        "shared_experts": _common(layer.shared_experts for layer in facts.moe_layers),
        "moe_layers": len(facts.moe_layers),
    }


def _common(values: Iterable[int | None]) -> int | None:
    """The value of all layers; None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None
