"""A folder of ``expert_weights_N.txt`` enters, as the scripts of deepseek-ai/ESFT write it; a Recording leaves.

N is the decoder layer. Each line is a forward pass, that is a document: the expert ids of its tokens one after another,
then their weights, separated by tabs, with two tabs between ids and weights. How many ids a token has is not
written.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import (
    ASK_EXPERTS_PER_TOKEN,
    MOST_EXPERTS,
    Known,
    Place,
    RecordedDocument,
    RecordedLayer,
    Recording,
    possible_experts_per_token,
    record_layer,
)
from moetool.errors import MoetoolError

SURE_TOKENS = 200
"""So many tokens would hardly all have different experts by twos, as a K twice too large takes."""
_NAME = re.compile(r"expert_weights_(\d{1,4})\.txt")


def read(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One folder; MoetoolError names the file and the line that is wrong."""
    files = _files(path)
    documents: tuple[RecordedDocument, ...] = ()
    layers: dict[int, RecordedLayer] = {}
    for number, file in sorted(files.items()):
        ids, weights, lengths = _read_lines(file)
        if known.experts_per_token_of(number) is None:
            known = replace(known, experts_per_token=_deduced(file, ids, lengths, note))
        chosen_per_token = _experts_per_token(file, number, lengths, known)
        found = tuple(
            RecordedDocument(f"{path.name}:{line}", length // chosen_per_token)
            for line, length in enumerate(lengths, 1)
        )
        documents = documents or found
        _check_lengths(file, files[min(files)], documents, found)
        shape = (-1, chosen_per_token)
        layers[number] = record_layer(
            Place(file, documents), number, ids.reshape(shape), known, weight=weights.reshape(shape)
        )
    if all(document.tokens == 1 for document in documents):
        note(f"{path}: every line is one token, and so a document: ids of a whole document belong on one line")
    return Recording(documents, layers)


def _files(path: Path) -> dict[int, Path]:
    """The file of each layer; MoetoolError where there is none, or two are of one layer."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        entries = []
    files: dict[int, Path] = {}
    for file in entries:
        if match := _NAME.fullmatch(file.name):
            other = files.setdefault(int(match[1]), file)
            if other != file:
                raise MoetoolError(f"{other} and {file} are of one layer", "keep one of them")
    if not files:
        raise MoetoolError(
            f"{path} is no folder with files expert_weights_N.txt",
            "name the folder that holds them: NAME=FOLDER, also NAME=FOLDER/rank_0 NAME=FOLDER/rank_1",
        )
    return files


def _read_lines(file: Path) -> tuple[NDArray[np.int32], NDArray[np.float16], list[int]]:
    """All ids and weights of a file, and how many ids each line has."""
    ids, weights, lengths = [], [], []
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines, warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns of text that is no number, and reads on
            for number, line in enumerate(lines, 1):
                left, _, right = line.rstrip("\n").partition("\t\t")
                some_ids, some_weights = _numbers(left, np.int64), _numbers(right, np.float64)
                wrong = _wrong_line(some_ids, some_weights)
                if wrong:
                    raise MoetoolError(f"{file}: line {number}: {wrong}", "a line is: ids, two tabs, as many weights")
                ids.append(some_ids.astype(np.int32))
                weights.append(some_weights.astype(np.float16))
                lengths.append(len(some_ids))
    except OSError as error:
        raise MoetoolError(f"{file} cannot be read: {error.strerror or error}") from None
    if not lengths:
        raise MoetoolError(f"{file} is empty", "a line is a document: ids, two tabs, as many weights")
    return np.concatenate(ids), np.concatenate(weights), lengths


def _numbers(text: str, dtype: type[np.generic]) -> NDArray[Any]:
    """Numbers between tabs; none at all where one of them is no number, or is missing."""
    try:
        found: NDArray[Any] = np.fromstring(text, dtype, sep="\t")
    except (ValueError, DeprecationWarning):
        return np.empty(0, dtype)
    return found if len(found) == text.count("\t") + 1 else found[:0]


def _wrong_line(ids: NDArray[Any], weights: NDArray[Any]) -> str | None:
    if not len(ids) or not len(weights):
        return "ids or weights are missing, or are not numbers"
    if len(ids) != len(weights):
        return f"{len(ids)} ids and {len(weights)} weights"
    if not 0 <= ids.min() <= ids.max() < MOST_EXPERTS:
        return f"expert {int(ids.min() if ids.min() < 0 else ids.max())} cannot be"
    # Rounded to 16 bits, larger ones would be infinite.
    return None if (np.abs(weights) < np.finfo(np.float16).max).all() else "a weight is not finite, or too large"


def _deduced(file: Path, ids: NDArray[Any], lengths: list[int], note: Callable[[str], None]) -> int:
    """The largest K that fits: its divisors always fit too, and more than K would need tokens without a repeat."""
    fitting = possible_experts_per_token(ids, lengths)
    if len(ids) < SURE_TOKENS * fitting[-1]:
        listed = ", ".join(map(str, fitting))
        raise MoetoolError(
            f"{file} does not say how many experts a token has, and is too short to tell: {listed} would fit",
            ASK_EXPERTS_PER_TOKEN,
        )
    note(f"{file} does not say how many experts a token has: {fitting[-1]} is the most that fits, and taken")
    return fitting[-1]


def _experts_per_token(file: Path, layer: int, lengths: list[int], known: Known) -> int:
    chosen_per_token = known.experts_per_token_of(layer)
    assert chosen_per_token is not None
    for line, length in enumerate(lengths, 1):
        if length % chosen_per_token:
            raise MoetoolError(
                f"{file}: line {line}: {length} ids are no whole number of tokens with {chosen_per_token} experts"
            )
    return chosen_per_token


def _check_lengths(
    file: Path, first: Path, documents: tuple[RecordedDocument, ...], found: tuple[RecordedDocument, ...]
) -> None:
    if len(documents) != len(found):
        raise MoetoolError(f"{file} has {len(found)} lines, {first} has {len(documents)}")
    for line, (ours, theirs) in enumerate(zip(documents, found, strict=True), 1):
        if ours != theirs:
            raise MoetoolError(f"{file}: line {line} has {theirs.tokens} tokens, that of {first} has {ours.tokens}")
