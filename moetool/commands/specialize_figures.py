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
    if result.layers is None:
        return
    titles = (("beyond chance", "excess_information_bits"), ("95 % from", "excess_low"), ("95 % to", "excess_high"))
    series = tuple((title, tuple(cast(float, row[key]) for row in layers)) for title, key in titles)
    yield Figure(
        key="information",
        title="What a routing choice tells about the domain",
        kind="lines",
        alt="Information about the domain beyond chance, in bits per layer, with its 95 % interval.",
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
