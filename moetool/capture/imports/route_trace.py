"""The table of a route trace enters, a Recording leaves.

Engines on llama.cpp write it (``docs`` of Helldez/BigMoeOnEdge). A row per choice, with columns in any order: ``step``
(the token's position), ``layer`` and ``expert``; where known also ``turn`` (a document here), ``phase`` (prefill or
decode), ``slot`` (rank), ``weight`` (nan where unknown) and ``dropped``. Comments before the header may declare the
experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import (
    ASK_EXPERTS_PER_TOKEN,
    MOST_EXPERTS,
    MOST_LAYERS,
    Known,
    Place,
    RecordedDocument,
    RecordedLayer,
    Recording,
    record_layer,
)
from moetool.capture.imports.table import Table
from moetool.errors import MoetoolError

PHASES = {"prefill": 0.0, "p": 0.0, "decode": 1.0, "d": 1.0}
"""Words for the numbers in the column ``phase``."""
_LIMITS = {"step": 2**31, "layer": MOST_LAYERS, "expert": MOST_EXPERTS}
_OPTIONAL_LIMITS = {"turn": 2**31, "phase": 2, "slot": MOST_EXPERTS, "dropped": 2}
_DECLARED = re.compile(r"\b(n_expert|n_expert_used)=(\d{1,9})")  # more digits than that would be refused as well


def read_route_trace(table: Table, known: Known, note: Callable[[str], None]) -> Recording:
    """One file; MoetoolError names the row that is wrong, counted from the header."""
    path, columns = table.path, _columns(table)
    declared = {name: int(value) for name, value in _DECLARED.findall(table.comments)}
    keys = [columns[name] for name in ("slot", "layer", "step", "turn") if name in columns]
    order = np.lexsort(keys)
    columns = {name: values[order] for name, values in columns.items()}
    numbers = np.unique(columns["layer"]).tolist()
    by_layer = {number: columns["layer"] == number for number in numbers}
    first = _tokens(columns, by_layer[numbers[0]])
    if len(numbers) > 1 and len(_tokens(columns, by_layer[numbers[-1]])) < len(first):
        note(f"{path}: layer {numbers[-1]} is left out: llama.cpp computes it for the last token of a prompt only")
        del by_layer[numbers[-1]]
    place = Place(path, _documents(table, first))
    layers: dict[int, RecordedLayer] = {}
    for number, rows in by_layer.items():
        if not np.array_equal(_tokens(columns, rows), first):
            raise MoetoolError(f"{path}: layer {number} has other tokens than layer {numbers[0]}", "it may be cut off")
        layers[number] = _layer(
            place, number, {name: values[rows] for name, values in columns.items()}, declared, known
        )
    return Recording(tuple(place.documents), layers)


def _columns(table: Table) -> dict[str, NDArray[Any]]:
    """Those that are known, checked; without a column ``turn`` all is one document."""
    limits = {**_LIMITS, **{name: limit for name, limit in _OPTIONAL_LIMITS.items() if name in table.columns}}
    columns: dict[str, NDArray[Any]] = {name: table.whole(name, limit) for name, limit in limits.items()}
    columns.setdefault("turn", np.zeros_like(columns["step"]))
    if "weight" in table.columns:
        columns["weight"] = table.columns["weight"]
    return columns


def _tokens(columns: Mapping[str, NDArray[Any]], rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """``[T, 3]`` turn, step and phase of the tokens that one layer has; ``[T, 2]`` where no phase is known."""
    names = [name for name in ("turn", "step", "phase") if name in columns]
    return np.unique(np.stack([columns[name][rows] for name in names], axis=1), axis=0)


def _documents(table: Table, tokens: NDArray[np.int64]) -> list[RecordedDocument]:
    documents = []
    for turn in np.unique(tokens[:, 0]):
        own = tokens[tokens[:, 0] == turn]
        prompt = int((own[:, 2] == 0).sum()) if "phase" in table.columns else None
        documents.append(RecordedDocument(f"{table.path.stem}:{turn}", len(own), prompt))
    return documents


def _layer(
    place: Place, number: int, columns: Mapping[str, Any], declared: Mapping[str, int], known: Known
) -> RecordedLayer:
    slots = columns.get("slot")
    per_token = known.experts_per_token_of(number, declared.get("n_expert_used"))
    if per_token is None and slots is not None:
        per_token = int(slots.max()) + 1
    if per_token is None:
        raise MoetoolError(f"{place.path} does not say how many experts a token has", ASK_EXPERTS_PER_TOKEN)
    shape = (sum(document.tokens for document in place.documents), per_token)
    _check_slots(place, number, shape, columns)
    weight, dropped = columns.get("weight"), columns.get("dropped")
    return record_layer(
        place,
        number,
        columns["expert"].reshape(shape),
        known,
        recorded_experts=declared.get("n_expert"),
        weight=None if weight is None or np.isnan(weight).all() else weight.reshape(shape),
        dropped=None if dropped is None else dropped.reshape(shape) != 0,
    )


def _check_slots(place: Place, number: int, shape: tuple[int, int], columns: Mapping[str, Any]) -> None:
    """Every token must have as many rows as it has experts, one of each slot where these are known."""
    rows, per_token = columns["expert"], shape[1]
    complete = len(rows) == shape[0] * per_token > 0
    for name in ("turn", "step") if complete else ():
        of_token = columns[name].reshape(shape)
        complete &= bool((of_token == of_token[:, :1]).all())
    if complete and "slot" in columns:
        complete = bool((columns["slot"].reshape(shape) == np.arange(per_token)).all())
    if not complete:
        raise MoetoolError(
            f"{place.path}: layer {number}: a token lacks one of slots 0 to {per_token - 1}, or has it twice"
        )
