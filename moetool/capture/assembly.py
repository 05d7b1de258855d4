"""How parameters come together from stored tensors: names enter, the places of every tensor in its parameter leave.

Most parameters are one stored tensor under another name, or the experts' tensors stacked, gate and up side by side.
Those are copied straight to their place. What transformers converts otherwise is left to its own loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Assembly:
    """One parameter, and which stored weight fills which part of it."""

    target: str
    parts: tuple[tuple[str, Index], ...]


def assemblies(
    sources: Mapping[str, Sequence[tuple[str, str | None]]],
    converters: Mapping[str, Any],
    stored: Mapping[str, Sequence[int]],
    shapes: Mapping[str, Sequence[int]],
) -> tuple[list[Assembly], list[str]]:
    """Assemblies of the parameters that can be copied straight, and the names of the weights that cannot.

    ``sources`` has, by parameter, weights and the pattern of the converter that transformers applies to each (None: it
    is only renamed); ``stored`` and ``shapes`` the shapes of weights and of parameters.
    """
    straight: list[Assembly] = []
    rest: list[str] = []
    for target, names in sources.items():
        parts = _parts(names, converters, stored, shapes[target]) if target in shapes else None
        if parts is None:
            rest += [name for name, _ in names]
        else:
            straight.append(Assembly(target, parts))
    return straight, rest


def _parts(
    names: Sequence[tuple[str, str | None]],
    converters: Mapping[str, Any],
    stored: Mapping[str, Sequence[int]],
    shape: Sequence[int],
) -> tuple[tuple[str, Index], ...] | None:
    first, pattern = names[0]
    if pattern is None:
        return ((first, ()),) if len(names) == 1 and tuple(stored[first]) == tuple(shape) else None
    converter = converters[pattern]
    groups = [[name for name, own in names if own == one] for one in converter.source_patterns]
    dim = _concatenation(converter.operations)
    alike = all(
        len(group) == len(groups[0]) > 0 and stored[group[0]] and len({tuple(stored[name]) for name in group}) == 1
        for group in groups
    )
    if dim is None or len(converter.target_patterns) != 1 or not alike or (dim == 0 and len(groups) > 1):
        return None
    expected = [len(groups[0]), *stored[groups[0][0]]]
    if dim:
        expected[dim] = sum(stored[group[0]][dim - 1] for group in groups)
    return tuple(_places(groups, stored, dim)) if expected == list(shape) else None


def _places(
    groups: Sequence[Sequence[str]], stored: Mapping[str, Sequence[int]], dim: int
) -> Iterator[tuple[str, Index]]:
    """Stacked on the first dimension, the groups one after another along ``dim``."""
    start = 0
    for group in groups:
        width = stored[group[0]][dim - 1] if dim else 0
        for expert, name in enumerate(group):
            yield name, (expert, *[slice(None)] * (dim - 1), slice(start, start + width)) if dim else (expert,)
        start += width


def _concatenation(operations: Sequence[Any]) -> int | None:
    """The dimension along which stacked groups are joined; 0 for one stack; None for anything else."""
    names = [type(operation).__name__ for operation in operations]
    if not names or names[0] != "MergeModulelist" or operations[0].dim != 0:
        return None
    if len(names) == 1:
        return 0
    if names == ["MergeModulelist", "Concatenate"] and operations[1].dim > 0:
        return int(operations[1].dim)
    return None
