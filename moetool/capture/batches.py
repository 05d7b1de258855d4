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


def make_batches(corpus: EncodedCorpus, batch_tokens: int, padding_id: int, padding: bool = True) -> list[Batch]:
    """Batches of at most ``batch_tokens`` tokens, padding included (a longer document is a batch of its own).

    Without ``padding`` only documents of one length share a batch. The longest come first, so that memory that does not
    suffice is noticed at once.
    """
    domains = {name: i for i, name in enumerate(dict.fromkeys(document.domain for document in corpus.documents))}
    order = sorted(range(len(corpus.documents)), key=lambda i: (-corpus.documents[i].tokens, i))
    rows: list[list[int]] = []
    for index in order:
        length = corpus.documents[rows[-1][0]].tokens if rows else 0  # the first of a batch is its longest
        fits = rows and (len(rows[-1]) + 1) * length <= batch_tokens
        if not fits or not (padding or corpus.documents[index].tokens == length):
            rows.append([index])
        else:
            rows[-1].append(index)
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
