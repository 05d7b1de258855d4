"""Arrays ``[T, L, K]`` with a column per decoder layer enter, the layers that have a router leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import Known, Place, RecordedLayer, record_layer
from moetool.errors import MoetoolError


def routed_rows(chosen: NDArray[Any]) -> slice:
    """The rows of one document ``[T, L, K]`` between those at its ends that hold no choice.

    Such rows are -1, or for K > 1 also 0, in all layers and slots: no token chooses one expert twice.
    """
    padding = (chosen == -1).all(axis=(1, 2))
    if chosen.shape[2] > 1:
        padding |= (chosen == 0).all(axis=(1, 2))
    routed = np.flatnonzero(~padding)
    return slice(int(routed[0]), int(routed[-1]) + 1) if len(routed) else slice(0, 0)


def split_columns(
    place: Place, chosen: NDArray[Any], known: Known, note: Callable[[str], None]
) -> dict[int, RecordedLayer]:
    """The MoE layers among the columns of ``[T, L, K]``, checked.

    The model tells which these are. Without one a column that holds 0 only, or -1 only, in all slots is that of a dense
    layer, which for K = 1 it need not be: then MoetoolError asks for the model.
    """
    columns = _columns_of_model(place, chosen, known) if known.model else _columns_with_choices(place, chosen, note)
    return {number: record_layer(place, number, chosen[:, column], known) for number, column in columns.items()}


def _columns_of_model(place: Place, chosen: NDArray[Any], known: Known) -> dict[int, int]:
    """Column by layer number: there is one for each decoder layer, or one for each of those with a router."""
    assert known.model is not None
    facts = known.model.facts
    numbers, columns = [moe.layer for moe in facts.moe_layers], chosen.shape[1]
    if columns == facts.layers:
        return {number: number for number in numbers}
    if columns == len(numbers):
        return {number: column for column, number in enumerate(numbers)}
    raise MoetoolError(
        f"{place.path} has {columns} layers, and {facts.name} has {facts.layers}, {len(numbers)} of them with a router",
        "name the model that was recorded",
    )


def _columns_with_choices(place: Place, chosen: NDArray[Any], note: Callable[[str], None]) -> dict[int, int]:
    zero, missing = (chosen == 0).all(axis=(0, 2)), (chosen == -1).all(axis=(0, 2))
    if chosen.shape[2] == 1 and zero.any():
        raise MoetoolError(
            f"{place.path}: layer {int(zero.argmax())} holds 0 only: a dense layer, or a router that always chose it",
            "--model MODEL tells which layers have a router",
        )
    empty = zero | missing
    if empty.any():
        listed = " ".join(map(str, np.flatnonzero(empty)))
        which = f"layer {listed}, which is" if empty.sum() == 1 else f"layers {listed}, which are"
        note(f"{place.path}: no routing in {which} taken to be dense")
    return {int(column): int(column) for column in np.flatnonzero(~empty)}
