"""``route-stats``: a RoutingTrace and the options enter, the Report of load, router, locality and co-activation leaves.

Imported when the command line starts, so numpy and the statistics are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from moetool.commands.provenance import made_with
from moetool.errors import MoetoolError
from moetool.progress import Progress, SilentProgress
from moetool.report.report import Column, Panel, Report, Table, Value
from moetool.report.values import as_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moetool.capture.trace import RoutingTrace
    from moetool.commands.route_stats_summary import LayerResult
    from moetool.statistics.registry import Quantity
    from moetool.statistics.sample import CountedTokens, LayerSample

Row = Mapping[str, Value]

SMALL_TABLE = 64
"""Rows of the experts table up to which the terminal shows them unasked."""
PHASE_STATISTICS = (
    "max_violation", "entropy", "gini", "router_entropy", "first_repeat", "first_repeat_matched", "distinct_experts",
)  # fmt: skip
"""Columns of the table of layers whose means are told apart for prefill and decode."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the report has of one layer."""

    result: LayerResult
    rows: Mapping[str, Sequence[Row]]
    pairs: Panel | None
    flows: Panel | None
    load: tuple[NDArray[np.int64], NDArray[np.float64] | None]
    """Counts and mean probabilities, both ``[E]``."""


def route_stats(trace: RoutingTrace, phase: str | None = None) -> Report:
    """Every routing statistic of a trace, or of its ``prefill`` or ``decode``, as ``moetool route-stats`` has it."""
    return build_report(trace, {"phase": phase}, phase=phase)


def build_report(
    trace: RoutingTrace,
    options: Mapping[str, object],
    progress: Progress | None = None,
    *,
    phase: str | None = None,
    by_expert: bool = False,
    figures: bool = False,
) -> Report:
    """Compute every routing statistic of a trace, one layer at a time; ``options`` are passed on to the report.

    ``phase`` is ``prefill`` or ``decode``, None for both. ``by_expert`` and ``figures`` have the text format show the
    table of experts and the figures; the report is the same. Raises MoetoolError for a phase without tokens.
    """
    from moetool.commands import route_stats_figures as pictures
    from moetool.commands.route_stats_findings import findings_of
    from moetool.commands.route_stats_summary import LayerResults, distribution, intervals, summarise, summary_columns
    from moetool.statistics.load import balance_loss_hf
    from moetool.statistics.sample import count_tokens

    tokens = count_tokens(trace, phase=phase)
    if phase is not None and not tokens.total:
        raise MoetoolError(f"--phase {phase}: the trace has no such tokens", "leave --phase out")
    layers = _study_layers(trace, tokens, progress or SilentProgress())
    results = LayerResults([layer.result for layer in layers])
    found = {key: [row for layer in layers for row in layer.rows[key]] for key in layers[0].rows}
    summary = summarise(trace, tokens, results, balance_loss_hf([layer.load for layer in layers], tokens.total))
    drawn = pictures.draw(
        results.rows,
        found["experts"],
        [layer.pairs for layer in layers if layer.pairs is not None],
        [layer.flows for layer in layers if layer.flows is not None],
    )
    tables = (
        Table("layers", "Layers", _shown(_layer_columns(), results.rows), tuple(results.rows)),
        distribution(results),
        intervals(results, summary),
        Table("phases", "Prefill and decode", _phase_columns(), _phases(trace) if phase is None else (), optional=True),
        *_layer_tables(found, by_expert),
    )
    return Report(
        command="route-stats",
        model={key: cast(Value, trace.model.get(key)) for key in ("name", "revision", "family")},
        options=cast(Mapping[str, Value], dict(options)),
        summary_columns=summary_columns(),
        summary=summary,
        tables=tables,
        findings=findings_of(trace, summary, {table.key: table.rows for table in tables}),
        figures=tuple(replace(figure, in_text=figures or figure.in_text) for figure in drawn),
        environment=made_with(trace),
    )


def _study_layers(trace: RoutingTrace, tokens: CountedTokens, progress: Progress) -> list[_Layer]:
    """Everything that the report has of each layer, two of them at once."""
    from moetool.commands.route_stats_figures import flow_panel, pair_panel
    from moetool.commands.route_stats_summary import layer_result
    from moetool.statistics.across import has_intervals
    from moetool.statistics.layer_tables import LAYER_TABLES
    from moetool.statistics.parallel import map_in_order
    from moetool.statistics.sample import sample_layers

    sure = has_intervals(tokens.group_domain)

    def study(sample: LayerSample) -> _Layer:
        studied = _Layer(
            layer_result(sample, sure),
            {table.key: table.rows(sample) for table in LAYER_TABLES},
            pair_panel(sample),
            flow_panel(sample),
            (sample.counts, sample.probability),
        )
        sample.release()
        return studied

    layers: list[_Layer] = []
    with progress.step("Routing statistics", len(trace.layers)) as advance:
        for layer in map_in_order(study, sample_layers(trace, tokens)):
            layers.append(layer)
            advance(1)
    return layers


def _layer_tables(found: Mapping[str, Sequence[Row]], by_expert: bool) -> list[Table]:
    """The tables with several rows per layer, in the order of their registry."""
    from moetool.statistics.layer_tables import LAYER_TABLES

    tables = []
    for table in LAYER_TABLES:
        rows = tuple(sorted(found[table.key], key=lambda row: -as_number(row[table.order]) if table.order else 0))
        note, shown = table.note, table.text_rows
        if shown is None and len(rows) > SMALL_TABLE // 2:
            shown = 0
        if table.key == "experts":
            shown = None if by_expert or len(rows) <= SMALL_TABLE else 0
            note = "" if shown is None else "--by expert shows them; --figures and --save FILE.png draw them."
        columns = _columns(table.quantities)
        tables.append(Table(table.key, table.title, columns, rows, note, text_rows=shown, optional=True))
    return tables


def _phases(trace: RoutingTrace) -> tuple[Row, ...]:
    """Means over layers of some statistics, apart for prompt tokens and generated ones; nothing without both."""
    from moetool.statistics.registry import LAYER_STATISTICS, defined
    from moetool.statistics.sample import PHASES, count_tokens, sample_layers

    counted = {phase: count_tokens(trace, phase=phase) for phase in PHASES}
    if not all(tokens.total for tokens in counted.values()):
        return ()
    wanted = [statistic for statistic in LAYER_STATISTICS if statistic.key in PHASE_STATISTICS]
    rows = []
    for phase, tokens in counted.items():
        values: dict[str, list[float]] = {statistic.key: [] for statistic in wanted}
        for sample in sample_layers(trace, tokens):
            for statistic in wanted:
                value = None if statistic.of_tokens and tokens.load_only else defined(statistic.compute(sample))
                values[statistic.key] += [value] if isinstance(value, float) else []
        means = {key: sum(known) / len(known) if known else None for key, known in values.items()}
        rows.append({"phase": phase, "tokens": tokens.total, **means})
    return tuple(rows)


def _phase_columns() -> tuple[Column, ...]:
    from moetool.statistics.registry import LAYER_STATISTICS

    wanted = [statistic for statistic in LAYER_STATISTICS if statistic.key in PHASE_STATISTICS]
    means = (Column(item.key, item.title, item.unit, help=f"Mean over layers of layers.{item.key}.") for item in wanted)
    return (
        Column("phase", "Phase", "text", help="prefill: the prompt, read at once; decode: generated tokens."),
        Column("tokens", "Tokens", "count", help="Counted tokens of the phase."),
        *means,
    )


def _layer_columns() -> tuple[Column, ...]:
    from moetool.statistics.registry import LAYER_STATISTICS

    return _columns(LAYER_STATISTICS)


def _columns(quantities: Sequence[Quantity]) -> tuple[Column, ...]:
    return tuple(Column(item.key, item.title, item.unit, item.detail, item.help) for item in quantities)


OCCASIONAL = ("dropped_share", "zero_compute_share", "bias_changed_share", "group_max_violation")


def _shown(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Column, ...]:
    """Pages for people show columns that few families have where there is a value, and none that are empty."""
    empty = {column.key for column in columns if all(row[column.key] is None for row in rows)}
    return tuple(
        replace(column, detail=column.key in empty or (column.detail and column.key not in OCCASIONAL))
        for column in columns
    )
