"""The pictures of ``compare``: rows of its tables enter, Figures leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moetool.commands.compare_tables import mean_of
from moetool.report.report import Figure, Panel, Value
from moetool.report.values import number_of

Row = Mapping[str, Value]

_SERIES = (
    ("agreement", "agreement"), ("by chance", "agreement_baseline"), ("top-1", "top1_agreement"),
    ("same set", "exact_agreement"),
)  # fmt: skip
_BARS = 20


def draw_agreement(layers: Sequence[Row], margins: Sequence[Row]) -> Iterator[Figure]:
    """Agreement by layer against chance, and by tenths of the boundary margin where that is known."""
    if any(row["agreement"] is not None for row in layers):
        series = tuple((name, tuple(number_of(row[key]) for row in layers)) for name, key in _SERIES)
        known = tuple((name, values) for name, values in series if any(value is not None for value in values))
        yield Figure(
            key="agreement",
            title="Agreement by layer",
            kind="lines",
            alt="Share of a token's experts that both chose, by layer, with what the loads give by chance; the share "
            "of tokens with the same first choice, and with the same set.",
            panels=(Panel("", tuple(str(row["layer"]) for row in layers), known),),
            x_title="layer",
            y_title="agreement",
        )
    if margins:
        yield _by_margin(margins)


def _by_margin(margins: Sequence[Row]) -> Figure:
    """The mean over layers, and the layer with the least agreement."""
    tenths = sorted({int(str(row["decile"])) for row in margins})
    worst = margins[0]["layer"]

    def line(rows: Sequence[Row]) -> tuple[float | None, ...]:
        return tuple(mean_of([row["agreement"] for row in rows if row["decile"] == tenth]) for tenth in tenths)

    lines = [("mean over layers", line(margins))]
    lines += [(f"layer {worst}", line([row for row in margins if row["layer"] == worst]))]
    return Figure(
        key="margins",
        title="Agreement by tenths of the boundary margin, from close calls to sure ones",
        kind="lines",
        alt="Share of a token's experts that both chose, by tenth of the distance between the last chosen and the "
        "first refused score in A: the mean over layers, and the layer with the least agreement.",
        panels=(Panel("", tuple(map(str, tenths)), tuple(lines)),),
        x_title="tenth of the margin",
        y_title="agreement",
    )


def draw_differences(values: Sequence[Row]) -> Iterator[Figure]:
    """The largest relative differences of two summaries."""
    changed = [row for row in values if row["relative_difference"]][:_BARS]
    if changed:
        sizes = [number_of(row["relative_difference"]) or 0.0 for row in changed]
        yield Figure(
            key="differences",
            title="Largest relative differences of the summaries, |B - A| / |A|",
            kind="bars",
            alt="Largest relative differences between the summaries; + where B is higher, - where A is.",
            panels=(
                Panel(
                    "",
                    tuple(f"{'+' if size > 0 else '-'} {row['key']}" for row, size in zip(changed, sizes, strict=True)),
                    (("relative difference", tuple(map(abs, sizes))),),
                ),
            ),
            y_title="relative difference",
        )
