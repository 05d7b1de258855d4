"""A dump of SGLang's expert distribution recorder enters (a torch file, of which no pickle runs), a Recording leaves.

Modes ``stat`` and ``stat_approx`` keep ``logical_count [passes, layers, experts]`` (two axes: a single pass);
``per_pass`` keeps records with ``global_physical_count [layers, physical experts]``, ``per_token`` records with
``topk_ids_of_layer [layers, tokens, slots]``, -1 where there is none. Physical experts are copies of logical ones:
``last_physical_to_logical_map``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.columns import split_columns
from moetool.capture.imports.recording import (
    ASK_EXPERTS_PER_TOKEN,
    MOST_EXPERTS,
    Known,
    Place,
    RecordedDocument,
    RecordedLayer,
    Recording,
    as_token_ids,
    is_integer,
    record_layer,
)
from moetool.errors import MoetoolError

MOST_TOKENS = 2**31
"""Counts are dealt out to as many tokens, and memory does not hold more."""


def read_dump(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One dump; MoetoolError names the pass that is wrong. Counts need the experts per token from elsewhere."""
    dump = _load(path)
    if "logical_count" in dump:
        return read_counts(path, dump["logical_count"], known)
    records = dump.get("records")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise MoetoolError(f"{path} has neither logical_count nor records", "name a dump of SGLang's recorder")
    logical = _array(path, "last_physical_to_logical_map", dump.get("last_physical_to_logical_map"), 2)
    if logical.size == 0 or not 0 <= logical.min() <= logical.max() < MOST_EXPERTS:
        raise MoetoolError(f"{path}: last_physical_to_logical_map must hold experts 0 to {MOST_EXPERTS - 1:,}")
    if "topk_ids_of_layer" in records[0]:
        return _from_tokens(path, records, logical, known, note)
    counts = np.stack([_logical_counts(path, number, record, logical) for number, record in enumerate(records, 1)])
    return _from_counts(path, counts, known)


def read_counts(path: Path, counts: object, known: Known) -> Recording:
    """``logical_count``: ``[passes, L, E]``, or ``[L, E]`` of a single pass."""
    array = _array(path, "logical_count", counts, 2, 3)
    return _from_counts(path, array.reshape(-1, *array.shape[-2:]), known)


def _load(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dump = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        raise MoetoolError(
            f"{path} cannot be read as tensors and plain values: {(str(error) or repr(error)).splitlines()[0]}",
            "anything else in it is refused, because it could run code; dump the recording again",
        ) from None
    if not isinstance(dump, dict):
        raise MoetoolError(f"{path} holds a {type(dump).__name__}, not the dictionary of a dump")
    return dump


def _array(what: object, name: str, value: Any, *dimensions: int) -> NDArray[Any]:
    """A tensor or list of whole numbers as an array."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0)
    if array.ndim not in dimensions or not is_integer(array):
        raise MoetoolError(
            f"{what}: {name} is {array.dtype} {list(array.shape)}, "
            f"not {' or '.join(map(str, dimensions))} axes of whole numbers"
        )
    return array


def _logical_counts(path: Path, number: int, record: Mapping[str, Any], logical: NDArray[Any]) -> NDArray[np.int64]:
    """``[L, E]`` the counts of all copies of each expert in one pass."""
    counts = _array(f"{path}: record {number}", "global_physical_count", record.get("global_physical_count"), 2)
    if counts.shape != logical.shape:
        raise MoetoolError(f"{path}: record {number} counts {list(counts.shape)}, the map has {list(logical.shape)}")
    summed = np.zeros((len(logical), int(logical.max()) + 1), dtype=np.int64)
    np.add.at(summed, (np.arange(len(logical))[:, None], logical), counts)
    return summed


def _from_counts(path: Path, counts: NDArray[Any], known: Known) -> Recording:
    """Counts ``[passes, L, E]``: a document for each pass that has any, whose counts are dealt out to its tokens."""
    names = [f"pass {number}" for number in range(1, len(counts) + 1)]
    wrong = ((counts < 0) | (counts > MOST_TOKENS)).any(axis=(1, 2))
    if wrong.any():
        raise MoetoolError(f"{path}: {names[int(wrong.argmax())]}: a count is negative, or above {MOST_TOKENS:,}")
    used = np.flatnonzero(counts.any(axis=(1, 2))).tolist()
    counts, names = counts[used].astype(np.int64), [names[index] for index in used]
    numbers = np.flatnonzero(counts.any(axis=(0, 2))).tolist()
    per_token = {number: known.experts_per_token_of(number) for number in numbers}
    if not numbers or None in per_token.values():
        raise MoetoolError(f"{path} holds counts only, not how many experts a token has", ASK_EXPERTS_PER_TOKEN)
    tokens = _tokens_of_passes(path, counts, names, per_token)
    if tokens.sum() > MOST_TOKENS:
        raise MoetoolError(
            f"{path} counts {int(tokens.sum()):,} tokens, more than {MOST_TOKENS:,}", "dump fewer passes"
        )
    documents = [RecordedDocument(f"{path.stem}:{name}", int(count)) for name, count in zip(names, tokens, strict=True)]
    place = Place(path, documents)
    layers: dict[int, RecordedLayer] = {}
    for number in numbers:
        dealt = [deal(row, int(count)) for row, count in zip(counts[:, number], tokens, strict=True)]
        layers[number] = record_layer(place, number, np.concatenate(dealt), known, recorded_experts=counts.shape[2])
    return Recording(tuple(documents), layers, load_only=True)


def _tokens_of_passes(
    path: Path, counts: NDArray[np.int64], names: Sequence[str], per_token: Mapping[int, Any]
) -> NDArray[np.int64]:
    """``[passes]`` how many tokens each had, in which all layers must agree."""
    tokens: NDArray[np.int64] | None = None
    for number, chosen_per_token in per_token.items():
        totals = counts[:, number].sum(axis=1)
        own = totals // chosen_per_token
        wrong = (totals % chosen_per_token != 0) | (counts[:, number].max(axis=1) > own)
        if tokens is not None:
            wrong |= own != tokens
        if wrong.any():
            index = int(wrong.argmax())
            most = int(counts[index, number].max())
            raise MoetoolError(
                f"{path}: {names[index]}, layer {number}: {int(totals[index])} choices, {most} "
                f"of one expert, are not those of tokens with {chosen_per_token} experts, as many as in other layers",
                "check --experts-per-token; a dump of one of several ranks may hold a part of the experts",
            )
        tokens = own
    assert tokens is not None
    return tokens


def deal(counts: NDArray[np.int64], tokens: int) -> NDArray[np.int32]:
    """``[T, K]`` choices with these counts ``[E]`` in which no token has an expert twice.

    Possible where no count is above T: experts fill the slots column by column, so that each is in T consecutive ones
    at most.
    """
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts).reshape(-1, tokens).T


def _from_tokens(
    path: Path, records: Sequence[Mapping[str, Any]], logical: NDArray[Any], known: Known, note: Callable[[str], None]
) -> Recording:
    """Records of passes with the experts of each token: sequences are told apart as far as the records allow."""
    parts = [_routed(f"{path}: record {number}", record, logical) for number, record in enumerate(records, 1)]
    if len({part.shape[2] for part in parts}) > 1:
        raise MoetoolError(f"{path}: records have different numbers of slots for experts")
    chosen = np.concatenate(parts)
    slots = int((chosen != -1).any(axis=(0, 1)).sum())  # the recorder has more than the model may use
    documents = _sequences(path, records)
    ids = [
        as_token_ids(f"{path}: record {number}", np.asarray(record["input_ids"]))
        for number, record in enumerate(records, 1)
    ]
    place = Place(path, documents)
    return Recording(tuple(documents), split_columns(place, chosen[:, :, :slots], known, note), np.concatenate(ids))


def _routed(what: str, record: Mapping[str, Any], logical: NDArray[Any]) -> NDArray[np.int64]:
    """``[T, L, slots]`` logical experts of one pass, -1 where there is none."""
    physical = _array(what, "topk_ids_of_layer", record.get("topk_ids_of_layer"), 3)
    tokens = len(_array(what, "input_ids", record.get("input_ids"), 1))
    if physical.shape[:2] != (len(logical), tokens):
        raise MoetoolError(f"{what}: {tokens} tokens and {len(logical)} layers, but routing of {list(physical.shape)}")
    if physical.size and not -1 <= physical.min() <= physical.max() < logical.shape[1]:
        raise MoetoolError(f"{what}: physical experts must be 0 to {logical.shape[1] - 1}")
    found = np.where(physical < 0, -1, logical[np.arange(len(logical))[:, None, None], physical])
    return np.moveaxis(found, 0, 1)


def _sequences(path: Path, records: Sequence[Mapping[str, Any]]) -> list[RecordedDocument]:
    """A prefill of several sequences has their lengths, but decode passes do not say whose tokens they hold.

    A pass of one sequence that goes on where the one of the pass before ended is taken to be its continuation; any
    other token of a decode pass is a document of its own.
    """
    documents: list[RecordedDocument] = []
    follows: int | None = None
    for number, record in enumerate(records, 1):
        what = f"{path}: record {number}"
        positions = _array(what, "positions", record.get("positions"), 1)
        extended = record.get("extend_seq_lens")
        lengths = _array(what, "extend_seq_lens", [1] * len(positions) if extended is None else extended, 1).tolist()
        if min(lengths, default=0) < 0:
            raise MoetoolError(f"{what}: extend_seq_lens holds {min(lengths)}")
        if sum(lengths) != len(positions) or len(positions) != len(record["input_ids"]):
            raise MoetoolError(
                f"{what}: {len(record['input_ids'])} tokens, {len(positions)} positions, {sum(lengths)} in all"
            )
        if len(lengths) == 1 and follows is not None and positions[0] == follows:
            last = documents.pop()
            prompt = last.prompt_tokens or 0
            if extended is not None and prompt == last.tokens:
                prompt += lengths[0]
            documents.append(RecordedDocument(last.id, last.tokens + lengths[0], prompt))
        else:
            for length in lengths:
                id = f"{path.stem}:{len(documents) + 1}"
                documents.append(RecordedDocument(id, length, 0 if extended is None else length))
        follows = int(positions[-1]) + 1 if len(lengths) == 1 else None
    return documents
