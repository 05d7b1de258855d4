"""From an encoded corpus to padded batches: documents of like length together, never two in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moetool.capture.tokens import EncodedCorpus


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded sequences ``[B, S]`` and where their real tokens belong in the trace."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    real: torch.Tensor
    """``[n]`` indices of the real tokens in the flattened ``[B * S]``."""
    slots: torch.Tensor
    """``[n]`` their indices in the trace; stays on the host."""
    counted: torch.Tensor
    """``[n]`` False for special tokens."""
    domain: torch.Tensor
    """``[n]`` domain index of each."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "attention_mask", "real", "counted", "domain")
        }
        return replace(self, **moved)


def deal_documents(
    corpus: EncodedCorpus, batch_tokens: int, padding: bool = True, boundary: int | None = None
) -> list[list[int]]:
    """The documents of each batch, of at most ``batch_tokens`` with padding (a longer document is one of its own).

    Without ``padding`` only documents of one length share a batch; with a ``boundary`` none longer than that many
    tokens with shorter ones. The longest come first, so that memory that does not suffice is noticed at once.
    """
    order = sorted(range(len(corpus.documents)), key=lambda i: (-corpus.documents[i].tokens, i))
    rows: list[list[int]] = []
    for index in order:
        length = corpus.documents[rows[-1][0]].tokens if rows else 0  # the first of a batch is its longest
        own = corpus.documents[index].tokens
        fits = rows and (len(rows[-1]) + 1) * length <= batch_tokens
        together = boundary is None or own > boundary or length <= boundary
        if not (fits and together) or not (padding or own == length):
            rows.append([index])
        else:
            rows[-1].append(index)
    return rows


def make_batches(corpus: EncodedCorpus, rows: Sequence[Sequence[int]], padding_id: int) -> list[Batch]:
    """A batch of the documents of each row."""
    domains = {name: i for i, name in enumerate(dict.fromkeys(document.domain for document in corpus.documents))}
    return [_make_batch(corpus, row, domains, padding_id) for row in rows]


def _make_batch(corpus: EncodedCorpus, indices: Sequence[int], domains: dict[str, int], padding_id: int) -> Batch:
    documents = [corpus.documents[index] for index in indices]
    longest = max(document.tokens for document in documents)
    input_ids = np.full((len(documents), longest), padding_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    slots = np.concatenate([np.arange(document.start, document.start + document.tokens) for document in documents])
    for row, document in enumerate(documents):
        input_ids[row, : document.tokens] = corpus.tokens[document.start : document.start + document.tokens]
        mask[row, : document.tokens] = 1
    domain = np.repeat(
        [domains[document.domain] for document in documents], [document.tokens for document in documents]
    )
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(mask),
        torch.from_numpy(np.flatnonzero(mask)),
        torch.from_numpy(slots),
        torch.from_numpy(~corpus.special[slots]),
        torch.from_numpy(domain),
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The same sequences in two batches, each padded as before."""
    rows = len(batch.input_ids)
    return rows_of(batch, 0, rows // 2), rows_of(batch, rows // 2, rows)


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some of the sequences of a batch."""
    length = batch.input_ids.shape[1]
    here = (batch.real >= start * length) & (batch.real < stop * length)
    return Batch(
        batch.input_ids[start:stop],
        batch.attention_mask[start:stop],
        batch.real[here] - start * length,
        batch.slots[here],
        batch.counted[here],
        batch.domain[here],
    )


def split_like(batches: Sequence[Batch], rows: Sequence[int]) -> list[Batch]:
    """The same sequences in batches of given numbers of rows: how an earlier run had split them."""
    parts: list[Batch] = []
    left = list(rows)
    for batch in batches:
        start = 0
        while start < len(batch.input_ids) and left:
            stop = start + left.pop(0)
            parts.append(rows_of(batch, start, stop))
            start = stop
    return parts
