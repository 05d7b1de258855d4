"""A route trace of BigMoeOnEdge enters (a llama.cpp engine; ``docs`` of Helldez/BigMoeOnEdge), a Recording leaves.

A CSV with ``#`` comments and a header, a row per choice: ``turn`` (a document here), ``phase`` (0 prompt, 1 decode),
``step`` (the token's position), ``layer``, ``slot`` (rank), ``expert``, ``weight`` (nan where unknown) and, in later
versions, ``dropped``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import (
    ASK_EXPERTS_PER_TOKEN,
    Known,
    Place,
    RecordedDocument,
    RecordedLayer,
    Recording,
    record_layer,
)
from moetool.errors import MoetoolError

_WHOLE = ("turn", "phase", "step", "layer", "slot", "expert")
_DECLARED = re.compile(r"\b(n_expert|n_expert_used)=(\d{1,6})\b")


def read_route_trace(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One file; MoetoolError names the row that is wrong, counted from the header."""
    declared, columns = _load(path)
    order = np.lexsort([columns[name] for name in ("slot", "layer", "step", "turn")])
    columns = {name: values[order] for name, values in columns.items()}
    numbers = np.unique(columns["layer"]).astype(int).tolist()
    by_layer = {number: columns["layer"] == number for number in numbers}
    first = _tokens(path, columns, by_layer[numbers[0]])
    if len(numbers) > 1 and len(_tokens(path, columns, by_layer[numbers[-1]])) < len(first):
        note(f"{path}: layer {numbers[-1]} is left out: llama.cpp computes it for the last token of a prompt only")
        del by_layer[numbers[-1]]
    place = Place(path, _documents(path, first))
    layers: dict[int, RecordedLayer] = {}
    for number, rows in by_layer.items():
        if not np.array_equal(_tokens(path, columns, rows), first):
            raise MoetoolError(f"{path}: layer {number} has other tokens than layer {numbers[0]}", "it may be cut off")
        layers[number] = _layer(
            place, number, {name: values[rows] for name, values in columns.items()}, declared, known
        )
    return Recording(tuple(place.documents), layers)


def _load(path: Path) -> tuple[dict[str, int], dict[str, NDArray[np.float64]]]:
    """What comments declare, and the columns by name."""
    declared: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.startswith("#"):
                break
            declared |= {name: int(value) for name, value in _DECLARED.findall(line)}
        names = line.strip().split(",")
        if missing := [name for name in (*_WHOLE, "weight") if name not in names]:
            raise MoetoolError(f"{path} has no column {missing[0]}", f"columns are {','.join(_WHOLE)},weight,...")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # numpy warns where no row is left
                table = np.loadtxt(file, delimiter=",", ndmin=2)
        except (ValueError, UserWarning) as error:
            raise MoetoolError(f"{path}: after the header: {error}") from None
    if table.shape[1] != len(names):
        raise MoetoolError(f"{path}: row 1 after the header has {table.shape[1]} columns, not {len(names)}")
    columns = dict(zip(names, table.T, strict=True))
    for name in _WHOLE:
        wrong = ~((columns[name] >= 0) & (columns[name] < 2**31) & (columns[name] % 1 == 0))
        if wrong.any():
            row = int(wrong.argmax())
            raise MoetoolError(f"{path}: row {row + 1} after the header: {name} is {columns[name][row]:g}")
    return declared, columns


def _tokens(path: Path, columns: Mapping[str, NDArray[np.float64]], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``[T, 3]`` turn, step and phase of the tokens that one layer has."""
    return np.unique(np.stack([columns[name][rows] for name in ("turn", "step", "phase")], axis=1), axis=0)


def _documents(path: Path, tokens: NDArray[np.float64]) -> list[RecordedDocument]:
    documents = []
    for turn in np.unique(tokens[:, 0]):
        own = tokens[tokens[:, 0] == turn]
        documents.append(RecordedDocument(f"{path.stem}:{int(turn)}", len(own), int((own[:, 2] == 0).sum())))
    return documents


def _layer(
    place: Place, number: int, columns: Mapping[str, Any], declared: Mapping[str, int], known: Known
) -> RecordedLayer:
    per_token = known.experts_per_token_of(number, declared.get("n_expert_used"))
    if per_token is None:
        raise MoetoolError(f"{place.path} does not say how many experts a token has", ASK_EXPERTS_PER_TOKEN)
    tokens = sum(document.tokens for document in place.documents)
    slots = columns["slot"]
    if len(slots) != tokens * per_token or (slots.reshape(tokens, per_token) != np.arange(per_token)).any():
        raise MoetoolError(
            f"{place.path}: layer {number}: a token lacks one of slots 0 to {per_token - 1}, or has it twice"
        )
    shape = (tokens, per_token)
    weight, dropped = columns["weight"].reshape(shape), columns.get("dropped")
    return record_layer(
        place,
        number,
        columns["expert"].reshape(shape).astype(np.int64),
        known,
        recorded_experts=declared.get("n_expert"),
        weight=None if np.isnan(weight).all() else weight,
        dropped=None if dropped is None or not dropped.any() else dropped.reshape(shape) != 0,
    )
