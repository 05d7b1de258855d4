"""The shape of a ``compare`` report: statistics of agreement enter, the columns of its summary and tables leave.

Traces and JSON reports give the same keys: what the other kind of comparison would tell is null, or a table without
rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moetool.commands.route_stats_summary import INTERVAL_COLUMNS
from moetool.report.report import Column, Table
from moetool.statistics.agreement import AGREEMENT_STATISTICS

Kind = Literal["traces", "reports"]

SHOWN_ROWS = 10
"""Of long tables, on the terminal."""
RATIOS = tuple(statistic for statistic in AGREEMENT_STATISTICS if statistic.parts is not None)
"""What has an interval."""
_STATISTICS = tuple(Column(s.key, s.title, s.unit, s.detail, s.help) for s in AGREEMENT_STATISTICS)
_ENDS = (
    Column(
        "agreement_low", "Low", "ratio", help="Lower end of the agreement's 95 % interval (Wilson): other documents."
    ),
    Column("agreement_high", "High", "ratio", help="Upper end."),
)
_IDENTICAL = Column(
    "identical",
    "Identical",
    "number",
    help="The same experts with the same weights for every token (null if one has none), or the same reports.",
)
_OF_TRACES = (
    *(replace(column, help=f"Mean over layers. {column.help}") for column in _STATISTICS),
    Column("worst_agreement", "Least agreement", "ratio", help="Of the layer with the least."),
    Column("worst_layer", "In layer", "number", help="Its layer; undefined where all layers have the same."),
    Column("same_tokens", "Same in all layers", "ratio", help="Share of the tokens with the same experts everywhere."),
    Column(
        "excess_load_shift",
        "Excess load shift",
        "ratio",
        help="Share of the disagreement that moved loads force beyond what exchanging A and B by groups gives: 0 by "
        "chance.",
    ),
    Column(
        "shifted_experts",
        "Shifted experts",
        "count",
        help="Whose load moved: p_value, which is adjusted for all experts, below 0.05.",
    ),
    Column(
        "margin_ratio",
        "Margin ratio",
        "ratio",
        help="Median margin of changed over kept tokens, mean over layers: near 0 if close calls changed.",
    ),
    Column("tokens", "Tokens", "count", help="Counted tokens: special in neither A nor B."),
    Column("documents", "Documents", "count", help="Input sequences."),
    Column("groups", "Groups", "count", help="Independent groups of documents with counted tokens."),
    Column("domains", "Domains", "count", True, "Domains of the documents."),
    Column("moe_layers", "MoE layers", "count", help="Layers with routed experts."),
)
_OF_REPORTS = (
    Column("compared_values", "Values", "count", help="Keys of the summary and cells of tables of both reports."),
    Column("different_values", "Different", "count", help="Of these; a row that one report lacks counts as one."),
    Column(
        "largest_relative_difference",
        "Largest relative difference",
        "ratio",
        help="Of the summaries: the largest |B - A| / |A|.",
    ),
    Column("from_zero", "From zero", "count", help="Keys of the summary that are 0 in A and another number in B."),
    Column(
        "undefined_in_one",
        "Undefined in one",
        "count",
        help="Keys of the summary that are a number in one report and null in the other.",
    ),
    Column(
        "intervals_apart",
        "Intervals apart",
        "count",
        help="Numbers whose 95 % intervals in A and B do not meet; undefined without intervals.",
    ),
)
SOURCE_COLUMNS = (
    Column("side", "", "text", help="A or B."),
    Column("source", "Source", "text", help="As named on the command line."),
    Column("name", "Model", "text", help="Its model."),
    Column("revision", "Revision", "text", help="Of the model."),
    Column("dtype", "Type", "text", help="What it computed in."),
    Column("quantize", "Quantised", "text", help="At load, by --quantize."),
    Column("engine", "Engine", "text", True, help="stream or resident."),
    Column("device", "Device", "text", help="What it ran on."),
)
LAYER_COLUMNS = (
    Column("layer", "Layer", "number", help="Decoder layer; dense layers leave gaps."),
    Column("experts", "Experts", "count", True, "Routed experts E of the layer."),
    Column("experts_per_token", "Per token", "count", True, "Experts K that each token chooses."),
    _STATISTICS[0],
    *_ENDS,
    *_STATISTICS[1:],
    Column(
        "excess_load_shift",
        "Excess load shift",
        "ratio",
        True,
        "Of the disagreement, beyond chance: as in the summary.",
    ),
    Column("changed_margin", "Margin, changed", "number", True, "Median margin in A of tokens with another set in B."),
    Column("kept_margin", "Margin, kept", "number", True, "Median margin in A of the tokens with the same set in B."),
    Column("changed_margin_mean", "Mean margin, changed", "number", True, "Mean margin of the former."),
    Column("kept_margin_mean", "Mean margin, kept", "number", True, "Mean margin of the latter."),
    Column(
        "margin_ratio", "Margin ratio", "ratio", help="changed_margin / kept_margin: near 0 if close calls changed."
    ),
)
DOMAIN_COLUMNS = (
    Column("domain", "Domain", "text", help="Of the documents."),
    Column("groups", "Groups", "count", True, help="Independent groups of documents with counted tokens."),
    Column("tokens", "Tokens", "count", help="Counted tokens."),
    _STATISTICS[0],
    *_ENDS,
    *_STATISTICS[1:],
)
EXPERT_COLUMNS = (
    Column("layer", "Layer", "number", help="Decoder layer."),
    Column("expert", "Expert", "number", help="Expert id, taken to be the same expert in A and B."),
    Column("share_a", "Share in A", "share", help="Share of the tokens that chose it in A: K/E at balance."),
    Column("share_b", "Share in B", "share", help="Share of the tokens that chose it in B."),
    Column("difference", "Difference", "share", help="share_b - share_a."),
    Column("low", "Low", "share", help="Lower end of its 95 % interval: other documents of this kind."),
    Column("high", "High", "share", help="Upper end."),
    Column("p_value", "Adjusted p", "number", help="How often chance alone moves any expert of any layer as far."),
)
MARGIN_COLUMNS = (
    Column("layer", "Layer", "number", help="Decoder layer; those with the least agreement come first."),
    Column("decile", "Tenth", "number", help="1 for the tokens with the smallest margins; equal ones stay together."),
    Column("margin_from", "From", "number", help="Smallest boundary margin, in A."),
    Column("margin_to", "To", "number", help="Largest boundary margin, in A."),
    Column("tokens", "Tokens", "count", help="Counted tokens with a margin between them."),
    Column("agreement", "Agreement", "ratio", help="Their agreement: it rises with the margin if close calls change."),
    Column("exact_agreement", "Same set", "ratio", help="Share of them that chose the same experts."),
)


def _of_unit(key: str, title: str, help: str, detail: bool = False) -> Column:
    """A column whose rows are measured in what their column ``unit`` says."""
    return Column(key, title, "number", detail, help, unit_from="unit")


_COMPARED = (
    Column("unit", "Unit", "text", True, "What it is measured in, as far as its command or its name tells."),
    _of_unit("a", "A", "In A; null where it is undefined or missing."),
    _of_unit("b", "B", "In B; null where it is undefined or missing."),
    _of_unit("difference", "Difference", "B - A, of numbers; null for ids, such as that of a layer."),
    Column("relative_difference", "Relative", "share", help="difference / |A|; null where A is 0."),
)
VALUE_COLUMNS = (
    Column("key", "Number", "text", help="A key of the summary."),
    *_COMPARED,
    _of_unit("a_low", "A from", "Lower end of the 95 % interval of A, where the reports have intervals.", True),
    _of_unit("a_high", "A to", "Upper end.", True),
    _of_unit("b_low", "B from", "Lower end of the 95 % interval of B.", True),
    _of_unit("b_high", "B to", "Upper end.", True),
    Column("apart", "Apart", "number", help="Whether the two intervals do not meet; null without them."),
)
CELL_COLUMNS = (
    Column("table", "Table", "text", True, help="Of both reports."),
    Column("row", "Row", "text", True, help="The columns that tell the rows of the table apart."),
    Column("column", "Column", "text", True, help="Of the table; (row) where one of the reports lacks the row."),
    Column("name", "Number", "text", help="Table, column and row in one."),
    *_COMPARED,
)

TABLES = (
    Table("sources", "Compared", SOURCE_COLUMNS, ()),
    Table("layers", "Layers", LAYER_COLUMNS, (), optional=True),
    Table("domains", "Domains, means over layers", DOMAIN_COLUMNS, (), optional=True),
    Table(
        "experts",
        "Experts whose load differs most",
        EXPERT_COLUMNS,
        (),
        "One in twenty intervals misses 0 by chance alone; the adjusted p holds for all experts together.",
        text_rows=SHOWN_ROWS,
        optional=True,
    ),
    Table(
        "margins",
        "Agreement by boundary margin",
        MARGIN_COLUMNS,
        (),
        "How far the last chosen score of A is from the first refused; the layer with the least agreement first.",
        text_rows=SHOWN_ROWS,
        optional=True,
    ),
    Table("intervals", "How sure", INTERVAL_COLUMNS, (), optional=True),
    Table(
        "values",
        "Summaries, what differs most first",
        VALUE_COLUMNS,
        (),
        text_rows=2 * SHOWN_ROWS,
        optional=True,
    ),
    Table(
        "cells",
        "Tables, what differs most first",
        CELL_COLUMNS,
        (),
        "Cells that are the same in both are counted, and left out here.",
        text_rows=SHOWN_ROWS,
        optional=True,
    ),
)
"""Without rows."""


def summary_columns(kind: Kind | None = None) -> tuple[Column, ...]:
    """Every key of the summary, in order; pages for people show those that a ``kind`` of comparison gives."""
    hidden = {"traces": _OF_REPORTS, "reports": _OF_TRACES, None: ()}[kind]
    columns = (_IDENTICAL, *_OF_TRACES, *_OF_REPORTS)
    return tuple(replace(column, detail=True) if column in hidden else column for column in columns)
