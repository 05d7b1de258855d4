"""The pictures of ``specialize``: a Specialization and the rows of its tables enter, Figures leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from moetool.report.report import Figure, Panel, Value
from moetool.statistics.specialization import Specialization

Row = Mapping[str, Value]

PANELS = 8
"""Layers drawn in the figure of specialists."""


def draw(result: Specialization, tables: Mapping[str, Sequence[Row]]) -> Iterator[Figure]:
    """Everything that can be drawn."""
    specialists, layers = tables["specialists"], tables["layers"]
    if result.layers is not None:
        yield from _information(result, layers, specialists)
    if tables["losses"]:
        yield _losses(tables["losses"])
    if tables["classes"]:
        yield _classes(tables["classes"])
    mapped = _document_map(result)
    if mapped is not None:
        yield mapped


def _information(result: Specialization, layers: Sequence[Row], specialists: Sequence[Row]) -> Iterator[Figure]:
    """Information by layer, and the lifts of the layers with most preferences."""
    titles = (
        ("beyond chance", "excess_information_bits"), ("95 % from", "excess_low"), ("95 % to", "excess_high"),
        ("null from", "null_low"), ("null to", "null_high"),
    )  # fmt: skip
    series = tuple((title, tuple(cast(float, row[key]) for row in layers)) for title, key in titles)
    yield Figure(
        key="information",
        title="What a routing choice tells about the domain",
        kind="lines",
        alt="Information about the domain beyond chance, in bits per layer, with its 95 % interval and the null's.",
        panels=(Panel("", tuple(str(row["layer"]) for row in layers), series, reference=0.0),),
        x_title="layer",
        y_title="bits",
        in_text=True,
    )
    drawn = sorted((row for row in layers if row["specialists"]), key=lambda row: -cast(int, row["specialists"]))
    numbers = {row["layer"] for row in drawn[:PANELS]}
    if numbers:
        yield Figure(
            key="specialists",
            title="Lift of the preferences found (1 where there is none)",
            kind="heatmap",
            alt="Lift per domain and expert where a preference is confirmed, else 1; layers with most specialists.",
            panels=tuple(_panel(result, row, specialists) for row in layers if row["layer"] in numbers),
            x_title="expert",
            y_title="lift",
            in_text=True,
        )


def _panel(result: Specialization, layer: Row, specialists: Sequence[Row]) -> Panel:
    lift = {(row["domain"], row["expert"]): row["lift"] for row in specialists if row["layer"] == layer["layer"]}
    experts = range(cast(int, layer["experts"]))
    series = tuple(
        (domain, tuple(cast(float, lift.get((domain, expert), 1.0)) for expert in experts))
        for domain in result.counts.domains
    )
    return Panel(f"layer {layer['layer']}", tuple(map(str, experts)), series, reference=1.0)


def _losses(rows: Sequence[Row]) -> Figure:
    domains = tuple(dict.fromkeys(str(row["other"]) for row in rows))
    series: dict[str, list[float | None]] = {}
    for row in rows:
        series.setdefault(f"{row['domain']} {row['experts']}", []).append(cast(float | None, row["rise_nats"]))
    return Figure(
        key="losses",
        title="What each domain loses without the specialists of another: rise of the loss per token",
        kind="heatmap",
        alt="A row per masked set of experts, a column per domain; the rise of the domain's loss in nats per token.",
        panels=(Panel("", domains, tuple((name, tuple(values)) for name, values in series.items()), reference=0.0),),
        x_title="loss of",
        y_title="nats per token",
        in_text=True,
    )


def _classes(rows: Sequence[Row]) -> Figure:
    values = tuple(cast(float | None, row["excess_information_bits"]) for row in rows)
    return Figure(
        key="classes",
        title="How differently experts are chosen for kinds of tokens",
        kind="bars",
        alt="Divergence in bits of the choices of each class of tokens from those of the other tokens around it.",
        panels=(Panel("", tuple(str(row["token_class"]).replace("_", " ") for row in rows), (("bits", values),)),),
        y_title="bits",
    )


def _document_map(result: Specialization) -> Figure | None:
    found = result.document_map
    if not all(share == share for share in found.explained_share):
        return None
    points = tuple(
        (result.counts.domains[domain], (float(point[0]), float(point[1])))
        for domain, point in zip(result.counts.domain, found.points, strict=True)
    )
    across, up = (f"axis {i}, {100 * share:.0f} % of the variance" for i, share in enumerate(found.explained_share, 1))
    return Figure(
        key="documents",
        title="Documents by their routing: near ones choose alike",
        kind="points",
        alt="A point per group of documents in the plane of the two largest principal components of its routing, one "
        "colour per domain.",
        panels=(Panel("", (across, up), points),),
        x_title=across,
        y_title=up,
    )
