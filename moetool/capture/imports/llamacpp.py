"""A CSV of experts that llama.cpp chose enters, a Recording leaves.

Of columns ``layer,expert`` or without a header: that of the ``moe-trace`` example (llama.cpp pull request 28544), a row
per choice.
Batches follow each other, in each its MoE layers in rising order, in each its tokens with all their experts: the prompt
in one batch or several, then one token per batch. With a header of other columns: a route trace, see ``route_trace``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetool.capture.imports.recording import (
    ASK_EXPERTS_PER_TOKEN,
    MOST_EXPERTS,
    MOST_LAYERS,
    Known,
    Place,
    RecordedDocument,
    Recording,
    record_layer,
    repeats,
)
from moetool.capture.imports.route_trace import PHASES, read_route_trace
from moetool.capture.imports.table import Table, read_table
from moetool.errors import MoetoolError

CHANCE = 1e-6
"""What is less likely than this did not come about by itself."""


@dataclass(frozen=True, slots=True)
class _Batches:
    """The rows of a file, cut where the layer changes."""

    layers: list[int]
    lengths: NDArray[np.int64]
    """``[batches, L]`` rows."""
    expert: NDArray[np.int64]
    """Of every row."""

    def rows(self, keep: NDArray[np.bool_], layer: int) -> NDArray[np.int64]:
        """The experts of some batches in the layer of an index."""
        wanted = np.zeros(self.lengths.shape, dtype=np.bool_)
        wanted[keep, layer] = True
        return self.expert[np.repeat(wanted.ravel(), self.lengths.ravel())]


def read(path: Path, known: Known, note: Callable[[str], None]) -> Recording:
    """One file; MoetoolError names the row that is wrong."""
    table = read_table(path, {"phase": PHASES})
    if table.columns.keys() != {"layer", "expert"}:
        return read_route_trace(table, known, note)
    batches = _cut(table)
    per_token = known.experts_per_token_of(batches.layers[0]) or _experts_per_token(path, batches)
    tokens = _tokens(path, batches, per_token)
    keep = np.ones(len(tokens), dtype=np.bool_)
    experts = known.experts_of(batches.layers[0]) or int(batches.expert.max()) + 1
    torn = _reads_past_rows(batches, tokens, per_token, experts)
    if torn:
        keep = tokens[:, 0] == 1
        note(
            f"{path}: the rows of prompts are not choices but whole rankings (this moe-trace reads the ids without "
            "their stride): only the tokens that were decoded one by one are imported"
        )
        if not keep.any():
            raise MoetoolError(f"{path} holds rankings of prompts only", "record some generated tokens: -n 64")
    layers = batches.layers
    if (tokens[keep] != tokens[keep, :1]).any():
        note(f"{path}: layer {layers[-1]} is left out: llama.cpp computes it for the last token of a prompt only")
        layers = layers[:-1]
    documents = _documents(path, tokens[:, 0], keep, one_layer=len(batches.layers) == 1)
    if any(document.prompt_tokens is not None for document in documents):
        note(f"{path} names no phases: batches of several tokens are taken for prompts, single tokens for decoded ones")
    place = Place(path, documents)
    return Recording(
        tuple(documents),
        {
            number: record_layer(place, number, batches.rows(keep, index).reshape(-1, per_token), known)
            for index, number in enumerate(layers)
        },
    )


def _cut(table: Table) -> _Batches:
    layer, expert = table.whole("layer", MOST_LAYERS), table.whole("expert", MOST_EXPERTS)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(layer)) + 1])
    run_layers = layer[starts]
    layers = np.unique(run_layers)
    wrong = run_layers != np.resize(layers, len(run_layers))
    if wrong.any() or len(run_layers) % len(layers):
        row = int(starts[wrong.argmax()]) if wrong.any() else len(layer) - 1
        what = "is out of turn" if wrong.any() else "is the last of the file, not of the model"
        raise MoetoolError(
            f"{table.row(row)}: layer {layer[row]} {what}: every batch has all layers, rising",
            "the file may be cut off",
        )
    lengths = np.diff([*starts, len(layer)]).reshape(-1, len(layers))
    return _Batches(layers.tolist(), lengths, expert)


def _experts_per_token(path: Path, batches: _Batches) -> int:
    """The shortest run of rows of one layer, which is that of one token.

    There is one wherever anything was decoded, or where the last layer saw the last token of a prompt only; with runs
    of one length in a single batch it might be those of several tokens.
    """
    shortest = int(batches.lengths.min())
    single = batches.lengths == shortest
    rows = batches.expert[np.repeat(single.ravel(), batches.lengths.ravel())].reshape(-1, shortest)
    unclear = len(batches.lengths) == 1 and single.all()
    if unclear or (batches.lengths % shortest).any() or repeats(rows).any():
        raise MoetoolError(f"{path} does not say how many experts a token has", ASK_EXPERTS_PER_TOKEN)
    return shortest


def _tokens(path: Path, batches: _Batches, per_token: int) -> NDArray[np.int64]:
    """``[batches, L]`` tokens, the same in all layers of a batch but the last, which may have fewer."""
    ends = np.cumsum(batches.lengths).reshape(batches.lengths.shape)
    tokens = batches.lengths // per_token
    wrong = (batches.lengths % per_token != 0) | (tokens > tokens[:, :1])
    wrong[:, :-1] |= tokens[:, :-1] != tokens[:, :1]
    if wrong.any():
        batch, layer = (int(axis[0]) for axis in np.nonzero(wrong))
        raise MoetoolError(
            f"{path}: rows {ends[batch, layer] - batches.lengths[batch, layer] + 1} to {ends[batch, layer]}, layer "
            f"{batches.layers[layer]}: not as many tokens with {per_token} experts as the batch has in its first layer",
            "check --experts-per-token; the file may be cut off",
        )
    return tokens


def _reads_past_rows(batches: _Batches, tokens: NDArray[np.int64], per_token: int, experts: int) -> bool:
    """Whether every batch of several tokens begins with different experts only, as a ranking of all of them does.

    The ids of a batch are the first K of each row of a sorted ``[tokens, experts]``; read as if they were contiguous
    they are the first row, then the second. Choices need not share an expert either: they are taken for rankings where
    tokens that choose evenly and on their own, which share least, would come out so with less than CHANCE.
    """
    # Each token misses the K experts of all before it, with a chance of comb(E - nK, K) / comb(E, K).
    free = experts - per_token * np.arange(experts // per_token)
    missed = sum(np.log((free - slot) / (experts - slot)) for slot in range(per_token))
    log_chance = np.concatenate([[0.0], np.cumsum(missed)])
    starts = np.cumsum(batches.lengths).reshape(batches.lengths.shape) - batches.lengths
    total = 0.0
    for batch, layer in np.argwhere(tokens > 1):
        first, length = starts[batch, layer], min(int(tokens[batch, layer]) * per_token, experts)
        if repeats(batches.expert[None, first : first + length]).any():
            return False
        total += float(log_chance[length // per_token])
    return total < log(CHANCE)


def _documents(
    path: Path, tokens: NDArray[np.int64], keep: NDArray[np.bool_], one_layer: bool
) -> list[RecordedDocument]:
    """A document begins with the file, and where a batch of several tokens follows one of a single token."""
    begins = np.concatenate([[True], (tokens[1:] > 1) & (tokens[:-1] == 1)])
    documents: list[RecordedDocument] = []
    for group in np.split(np.arange(len(tokens)), np.flatnonzero(begins)[1:]):
        kept = int(tokens[group][keep[group]].sum())
        # Batches of a single layer cannot be told apart, and a first token may be a prompt or the last of one.
        unknown = one_layer or tokens[group[0]] == 1
        prompt = None if unknown else int(tokens[group][keep[group] & (tokens[group] > 1)].sum())
        if kept:
            documents.append(RecordedDocument(f"{path.stem}:{len(documents) + 1}", kept, prompt))
    return documents
