"""What a key of a command's report means: the key enters, a few lines for people leave; nothing is run."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, cast

from moetool.errors import MoetoolError
from moetool.report.checks import near_keys
from moetool.report.schemas import Schema, columns_of, read_schema

if TYPE_CHECKING:
    from moetool.statistics.registry import LayerStatistic
    from moetool.statistics.sample import LayerSample

_WIDTH = 80
_EXPERTS, _EXPERTS_PER_TOKEN = 64, 8
"""Of the layer whose baseline and range stand for all."""


def explain(command: str, key: str) -> str:
    """For each part of the report that has the key, its unit and meaning; of a statistic of layers also what computes
    it, its baseline and its range.

    ``key`` may name the part, as in ``layers.gini``. MoetoolError for one that the report does not have.
    """
    described = dict(_described(read_schema(command)))
    found = {place: column for place, column in described.items() if key in (place, place.split(".")[1])}
    # What people read in a report are titles.
    found = found or {place: column for place, column in described.items() if _is_title(key, place, column)}
    if not found:
        names = {place.split(".")[1]: column["title"] for place, column in described.items()}
        near = near_keys(key, {**names, **dict.fromkeys(described, "")}, most=3)
        raise MoetoolError(
            f"--explain {key}: a report of moetool {command} has no such key",
            f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(names)}",
        )
    lines = [f"{place} ({_unit(column)}): {column['description']}" for place, column in found.items()]
    if command == "route-stats":
        lines += _statistic(key.split(".")[-1])
    return "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in lines)


def _is_title(text: str, place: str, column: Schema) -> bool:
    return text.casefold().strip() in (column["title"].casefold(), place.casefold(), place.split(".")[1].casefold())


def _described(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Everything with a description, by its place: ``summary.tokens``, ``layers.gini``."""
    for name, columns in columns_of(schema).items():
        for key, column in columns.items():
            yield f"{name}.{key}", column


def _unit(column: Schema) -> str:
    return f"unit in the column {column['x-unit-from']}" if "x-unit-from" in column else str(column["x-unit"])


def _statistic(key: str) -> Iterator[str]:
    """Definition, baseline and range of a statistic of layers, or of its mean or worst layer."""
    from moetool.statistics.registry import LAYER_STATISTICS

    name = key.removeprefix("mean_").removeprefix("worst_")
    for statistic in LAYER_STATISTICS:
        if statistic.key == name:
            yield from (f"definition: {text}" for text in _definitions(statistic))
            if statistic.worse is not None:
                yield from _comparison(statistic)


def _definitions(statistic: LayerStatistic) -> Iterator[str]:
    """First paragraphs of the docstrings of what computes it: formula, range and source."""
    used = inspect.getclosurevars(statistic.compute)
    for module in used.globals.values():
        for name in sorted(used.unbound):
            function = getattr(module, name, None) if isinstance(module, ModuleType) else None
            if inspect.isfunction(function):
                yield " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split()).replace("``", "")


def _comparison(statistic: LayerStatistic) -> Iterator[str]:
    """What to hold a value against, with numbers for one size of layer; ``distribution`` has those of a model."""
    size = SimpleNamespace(experts=_EXPERTS, experts_per_token=_EXPERTS_PER_TOKEN, expert_groups=8, zero_experts=0)
    sample = cast("LayerSample", SimpleNamespace(layer=size))
    baseline = statistic.baseline(sample, _Names())
    least, most = ("without end" if limit is None else f"{limit:.4g}" for limit in statistic.limits(sample))
    yield f"baseline: {baseline if isinstance(baseline, str) else f'{baseline:.4g}'}"
    where = f"{_EXPERTS} experts, {_EXPERTS_PER_TOKEN} per token; the table distribution has the model's own"
    yield f"attainable range: {least} to {most} ({where})"
    yield f"worst: the {statistic.worse}est value"


class _Names(dict[str, str]):
    """A row of which only the names of its columns are known."""

    def __missing__(self, key: str) -> str:
        return key
