"""Which part of a corpus a shard is: an encoded corpus and its batches enter, those of one of n shards leave.

Whole batches are dealt out: each is padded and computed as in a run over the whole corpus, so all shards together have
the bits of one run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from moetool.capture.tokens import EncodedCorpus
from moetool.capture.trace import TraceShard
from moetool.errors import MoetoolError


@dataclass(frozen=True, slots=True)
class Shard:
    """Number ``index`` (from 1) of ``count`` parts."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse ``2/4``, the second of four; MoetoolError for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise MoetoolError(
            f"--shard {text}: not one of N parts",
            "shards are counted from 1: --shard 1/2 on one machine, --shard 2/2 on another",
        )
    return Shard(int(match[1]), int(match[2]))


def take_shard(
    corpus: EncodedCorpus, rows: Sequence[Sequence[int]], shard: Shard
) -> tuple[EncodedCorpus, list[list[int]], TraceShard]:
    """Every ``count``-th batch, and the corpus of their documents in the order of the whole.

    ``rows`` are the documents of every batch of the whole, the longest first, which makes the shards about equal.
    MoetoolError where there are fewer batches than shards.
    """
    if len(rows) < shard.count:
        raise MoetoolError(
            f"shard {shard}: the corpus makes {len(rows)} batches only, too few for {shard.count} shards",
            "use smaller --batch-tokens (the same for all shards), or fewer shards or processes",
        )
    mine = rows[shard.index - 1 :: shard.count]
    kept = sorted(index for row in mine for index in row)
    place = {index: position for position, index in enumerate(kept)}
    part = _select(corpus, kept)
    local = [[place[index] for index in row] for row in mine]
    return part, local, TraceShard(shard.index, shard.count, _digest(corpus, rows), tuple(kept))


def _select(corpus: EncodedCorpus, kept: Sequence[int]) -> EncodedCorpus:
    """The corpus of some documents only."""
    old = [corpus.documents[index] for index in kept]
    slots = np.concatenate([np.arange(document.start, document.start + document.tokens) for document in old])
    starts = np.cumsum([0, *(document.tokens for document in old)]).tolist()
    documents = tuple(replace(document, start=start) for document, start in zip(old, starts, strict=False))
    tokens = corpus.tokens[slots]
    vocabulary = {token: corpus.vocabulary[token] for token in np.unique(tokens).tolist()}
    return EncodedCorpus(documents, tokens, corpus.special[slots], vocabulary, ())


def _digest(corpus: EncodedCorpus, rows: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the whole corpus's documents and of how they share batches."""
    content = [[asdict(document) for document in corpus.documents], [list(row) for row in rows]]
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
