"""The waist between statistics and formats: every command returns a Report, every format reads one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | bool | None
"""A plain cell. Undefined is None: never NaN, never infinity."""

Unit = Literal["text", "count", "parameters", "bytes", "flops", "share", "nats", "bits", "ratio", "number", "seconds"]
"""What a number is measured in; the formats decide how it is written. ``share`` is 0..1, ``ratio`` has no unit."""


@dataclass(frozen=True, slots=True)
class Column:
    """A named quantity: one column of a table or one key of the summary."""

    key: str
    title: str
    """Short heading for people."""
    unit: Unit = "number"
    detail: bool = False
    """True: left out of the text format (json, markdown and csv have everything)."""
    help: str = ""
    """One sentence: what it is, with its baseline."""
    unit_from: str = ""
    """A column that names the unit of each row, for tables of unlike quantities; ``unit`` is then that of none."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values under described columns."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Value], ...]
    note: str = ""
    """A sentence under the title: how to read the table."""
    text_rows: int | None = None
    """How many rows the text format shows (None: all); the rest is counted in a line."""
    for_scripts: bool = False
    """True: json and csv have the table, pages for people do not."""
    optional: bool = False
    """True: pages for people leave it out where it has no rows."""
    range_key: str = ""
    """A column of consecutive numbers (layers): rows that differ in nothing else share a line of the text format."""

    @property
    def is_shown(self) -> bool:
        """Whether pages for people have it."""
        return not self.for_scripts and (bool(self.rows) or not self.optional)

    def to_frame(self) -> pd.DataFrame:
        """The table as a pandas frame, one column per key, in order."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self.rows], columns=[column.key for column in self.columns])


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence that a reader should not miss."""

    level: Literal["info", "warning", "error"]
    code: str
    """Stable snake_case name, for scripts."""
    message: str


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one ``--fail-if`` expression."""

    expression: str
    key: str
    value: Value
    failed: bool
    message: str
    """What the value is."""

    @property
    def sentence(self) -> str:
        """The message, and what was asked: a check that passed must not read as if its expression held."""
        return f"{self.message}; fails if {self.expression}"


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture described by its data, so that each format draws it in its own way."""

    key: str
    title: str
    kind: Literal["bars", "lines", "heatmap", "flows", "points"]
    alt: str
    """One sentence that says what the picture shows, for people who cannot see it."""
    panels: tuple[Panel, ...]
    x_title: str = ""
    y_title: str = ""
    in_text: bool = False
    """True: the text format draws it too."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. ``bars``: one value per x; ``lines``: several series; ``heatmap``: rows of values.

    ``flows`` is a matrix like ``heatmap``: a series per node on the left, an x per node on the right, and as value
    what goes from one to the other (0 or None: nothing). The sums of rows and columns are the loads of the nodes.
    ``points`` has two x, across and up, and a series of two values per point; points of one name share a colour.
    """

    title: str
    x: tuple[str, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Named rows of values, each as long as ``x``. ``bars`` has one; ``heatmap`` and ``flows`` one per row."""
    reference: float | None = None
    """A baseline drawn across the panel (uniform load, chance)."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found. The same input gives the same report: there is no timestamp in it."""

    command: str
    model: Mapping[str, Value]
    """``name``, ``revision``, ``family``."""
    options: Mapping[str, Value | Sequence[Value]]
    summary_columns: tuple[Column, ...]
    """Describes every key of ``summary``, in order."""
    summary: Mapping[str, Value]
    tables: tuple[Table, ...] = ()
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = ()
    figures: tuple[Figure, ...] = ()
    environment: Mapping[str, Value] = field(default_factory=dict)
    schema_version: str = "1.0"

    @property
    def schema(self) -> str:
        """Name and version of the JSON shape, such as ``moetool.route-stats/1.0``."""
        return f"moetool.{self.command}/{self.schema_version}"

    def with_checks(self, checks: Sequence[Check]) -> Report:
        """The same report with the outcomes of ``--fail-if``."""
        return replace(self, checks=tuple(checks))

    def verify(self) -> None:
        """Raise ValueError where a value is missing, undescribed, not plain, NaN or infinite: a bug, named here."""
        summary = Table("summary", "", self.summary_columns, (self.summary,))
        for table in (summary, *self.tables):
            keys = {column.key for column in table.columns}
            for number, row in enumerate(table.rows):
                if row.keys() != keys:
                    raise ValueError(f"{table.key} row {number} and its columns differ in {sorted(row.keys() ^ keys)}")
                for key, value in row.items():
                    _verify_value(value, f"{table.key} row {number} {key}")
        for part in (self.model, self.options, self.environment):
            for key, option in part.items():
                for item in option if isinstance(option, list | tuple) else [option]:
                    _verify_value(item, key)

    def table(self, key: str) -> Table:
        """The table called ``key``; KeyError where there is none."""
        for table in self.tables:
            if table.key == key:
                return table
        raise KeyError(key)


def _verify_value(value: object, place: str) -> None:
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"{place} is a {type(value).__name__}, not a plain value")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}: undefined is None")
