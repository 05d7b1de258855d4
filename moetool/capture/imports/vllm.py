"""``routed_experts`` arrays of vLLM enter, saved with numpy; a Recording leaves.

``.npy``: one document, ``[tokens, layers, experts per token]`` with a column per decoder layer (0 in dense ones).
``.npz``: such an array per document, in natural order of their names. Optional beside an array ``NAME``:
``NAME.token_ids`` (the last generated token, which was never routed, may be among them) and ``NAME.prompt_tokens``, a
number: how many of the tokens were the prompt. ``prompt_routed_experts``, where they come apart, belong before the
others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.columns import routed_rows, split_columns
from moetool.capture.imports.recording import Known, Place, RecordedDocument, Recording, as_token_ids, is_integer
from moetool.errors import MoetoolError

_EXTRAS = (".token_ids", ".prompt_tokens")


@dataclass(frozen=True, slots=True)
class RoutedSequence:
    """One document as a server returned it."""

    document: RecordedDocument
    chosen: NDArray[Any]
    """``[T, L, K]``"""
    token_ids: NDArray[np.int32] | None


def read(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One file; MoetoolError names the array that is wrong."""
    arrays = _load(path)
    names = sorted((name for name in arrays if not name.endswith(_EXTRAS)), key=_natural)
    alone = {name for name in arrays if name.endswith(_EXTRAS) and name.rpartition(".")[0] not in names}
    if not names or alone:
        raise MoetoolError(f"{path} has no array {min(alone).rpartition('.')[0] if alone else 'of routed experts'}")
    return join_sequences(path, [_sequence(path, name, arrays) for name in names], known, note)


def join_sequences(path: Path, sequences: list[RoutedSequence], known: Known, note: Callable[[str], None]) -> Recording:
    """Cut padding off the ends of each document, and tell dense layers from others."""
    shapes = {sequence.chosen.shape[1:]: sequence.document.id for sequence in sequences}
    if len(shapes) > 1:
        (ours, first), (theirs, second) = list(shapes.items())[:2]
        raise MoetoolError(
            f"{path}: document {first} has {ours[0]} layers with {ours[1]} experts per token, "
            f"{second} has {theirs[0]} with {theirs[1]}"
        )
    cut = [_cut(sequence) for sequence in sequences]
    padding = sum(len(sequence.chosen) for sequence in sequences) - sum(len(sequence.chosen) for sequence in cut)
    if padding:
        rows = "1 row without any choice is" if padding == 1 else f"{padding} rows without any choice are"
        note(f"{path}: {rows} left out")
    place = Place(path, [sequence.document for sequence in cut])
    layers = split_columns(place, np.concatenate([sequence.chosen for sequence in cut]), known, note)
    ids = [sequence.token_ids for sequence in cut]
    known_ids = [np.zeros(len(one.chosen), np.int32) if one.token_ids is None else one.token_ids for one in cut]
    return Recording(
        tuple(place.documents), layers, None if all(one is None for one in ids) else np.concatenate(known_ids)
    )


def _cut(sequence: RoutedSequence) -> RoutedSequence:
    rows = routed_rows(sequence.chosen)
    document, chosen = sequence.document, sequence.chosen[rows]
    prompt = document.prompt_tokens
    if prompt is not None:
        prompt = min(max(prompt - rows.start, 0), len(chosen))
    return RoutedSequence(
        RecordedDocument(document.id, len(chosen), prompt),
        chosen,
        None if sequence.token_ids is None else sequence.token_ids[rows],
    )


def _load(path: Path) -> Mapping[str, NDArray[Any]]:
    """Every array of a file by name; pickled objects are refused."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if hasattr(loaded, "files") else {"": loaded}
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise MoetoolError(
            f"{path} cannot be read: {error or type(error).__name__}",
            "save plain arrays: numpy.save, numpy.savez (pickles are refused)",
        ) from None
    other = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if other:
        raise MoetoolError(f"{path}: {other[0]} is no array", "save plain arrays: numpy.savez")
    return arrays


def _natural(name: str) -> list[tuple[int, str]]:
    """So that the tenth document comes after the ninth."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _sequence(path: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> RoutedSequence:
    chosen = arrays[name]
    id = f"{path.stem}/{name}" if name else path.stem
    what = f"{path}: array {name}" if name else str(path)
    if chosen.ndim != 3 or not is_integer(chosen) or not chosen.shape[1] or not chosen.shape[2]:
        raise MoetoolError(
            f"{what} is {chosen.dtype} {list(chosen.shape)}, not whole numbers [tokens, layers, experts per token]",
            "beside an array NAME there may be NAME.token_ids and NAME.prompt_tokens",
        )
    ids = arrays.get(f"{name}.token_ids")
    prompt = arrays.get(f"{name}.prompt_tokens")
    if ids is not None and not (ids.ndim == 1 and is_integer(ids) and 0 <= len(ids) - len(chosen) <= 1):
        raise MoetoolError(f"{what} has {len(chosen)} tokens, and token_ids {ids.dtype} {list(ids.shape)}")
    if prompt is not None and not (prompt.size == 1 and is_integer(prompt) and 0 <= prompt.item() <= len(chosen) + 1):
        raise MoetoolError(f"{what} has {len(chosen)} tokens, and prompt_tokens {prompt}")
    return RoutedSequence(
        RecordedDocument(id, len(chosen), None if prompt is None else min(prompt.item(), len(chosen))),
        chosen,
        None if ids is None else as_token_ids(f"{what}.token_ids", ids)[: len(chosen)],
    )
