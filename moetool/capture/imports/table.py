"""A CSV of numbers enters, with or without a header and ``#`` comments; its columns leave by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from moetool.errors import MoetoolError

Words = Mapping[str, Mapping[str, float]]
"""Text that stands for a number, by column."""
_HEADERLESS = ("layer", "expert")


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a file, which is never without one."""

    path: Path
    comments: str
    """The lines with ``#`` before the first row."""
    headed: bool
    columns: Mapping[str, NDArray[np.float64]]

    def row(self, index: int) -> str:
        """Where a row is, for messages; comments, blank lines and the header are not counted."""
        return f"{self.path}: row {index + 1}{' after the header' if self.headed else ''}"

    def whole(self, name: str, limit: int) -> NDArray[np.int64]:
        """A column of whole numbers from 0 on, below ``limit``; MoetoolError names the first row that has another."""
        if name not in self.columns:
            raise MoetoolError(f"{self.path} has no column {name}", f"its columns are {','.join(self.columns)}")
        values = self.columns[name]
        wrong = ~((values >= 0) & (values < limit) & (values % 1 == 0))
        if wrong.any():
            row = int(wrong.argmax())
            raise MoetoolError(f"{self.row(row)}: {name} is {values[row]:g}")
        return values.astype(np.int64)


def read_table(path: Path, words: Words) -> Table:
    """One file; its columns are ``layer,expert`` where no header names them.

    MoetoolError names the first row that has other columns, or text that is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            comments, names, headed, lines = _begin(file)
            if missing := [name for name in _HEADERLESS if name not in names]:
                raise MoetoolError(f"{path} has no column {missing[0]}", "name columns in the first line: layer,expert")
            values = _numbers(lines, names, words)
            if values is None:
                file.seek(0)
                _refuse(Table(path, comments, headed, {}), _begin(file)[-1], names, words)
    except OSError as error:
        raise MoetoolError(f"{path} cannot be read: {error.strerror or error}") from None
    return Table(path, comments, headed, dict(zip(names, values.T, strict=True)))


def _begin(file: TextIO) -> tuple[str, Sequence[str], bool, Iterator[str]]:
    """The comments, the names of the columns, whether a header gave them, and the rows."""
    comments, first = "", ""
    for line in file:
        if line.startswith("#"):
            comments += line
        elif line.strip():
            first = line
            break
    cells = [cell.strip().lower() for cell in first.split(",")]
    headed = bool(first) and not _is_number(cells[0])
    lines = (line.partition("#")[0].strip() for line in (file if headed else chain([first], file)))
    return comments, cells if headed else _HEADERLESS, headed, (line for line in lines if line)


def _numbers(lines: Iterator[str], names: Sequence[str], words: Words) -> NDArray[np.float64] | None:
    """``[rows, columns]``; None where a row is wrong, or there is none."""
    converters: dict[int | str, Callable[[str], Any]] = {
        names.index(name): partial(_number, words=known) for name, known in words.items() if name in names
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns where there is no row
            table = np.loadtxt(lines, delimiter=",", ndmin=2, converters=converters, encoding="utf-8")
    except (ValueError, UserWarning):
        return None
    return table if table.shape[1] == len(names) else None


def _number(text: str, words: Mapping[str, float]) -> float:
    word = text.strip().lower()
    return words[word] if word in words else float(word)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse(table: Table, lines: Iterator[str], names: Sequence[str], words: Words) -> NoReturn:
    """Name the first row that is wrong, and what it has: numpy says it in terms of its own."""
    hint = f"a row is {','.join(names)}"
    index = -1
    for index, line in enumerate(lines):
        cells = line.split(",")
        if len(cells) != len(names):
            raise MoetoolError(f"{table.row(index)}: {len(names)} columns are expected, not {len(cells)}", hint)
        for name, cell in zip(names, cells, strict=True):
            if not _is_number(cell) and cell.strip().lower() not in words.get(name, {}):
                raise MoetoolError(f"{table.row(index)}: {name} is {cell.strip()[:40]!r}", hint)
    raise MoetoolError(f"{table.path} holds no row" if index < 0 else f"{table.path} is no table of numbers", hint)
