"""From documents to token ids: enters text and a tokenizer, leaves sequences with their special tokens marked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import TraceDocument
from moetool.corpus.documents import Document
from moetool.errors import MoetoolError


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """Token ids of all documents, one after another."""

    documents: tuple[TraceDocument, ...]
    tokens: NDArray[np.int32]
    """``[T]``"""
    special: NDArray[np.bool_]
    """``[T]`` tokens that the tokenizer calls special."""
    vocabulary: dict[int, str]
    notes: tuple[str, ...]
    """What was cut or left out, in sentences."""


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's own tokenizer; code that comes with it is never run."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a missing or broken tokenizer
        detail = " ".join(str(error).split())[:200]
        raise MoetoolError(
            f"{folder} has no tokenizer that loads without running its own code: {detail}",
            "put tokenizer.json and tokenizer_config.json beside the weights",
        ) from None


def encode_corpus(
    documents: Sequence[Document], tokenizer: Any, *, max_tokens: int | None, max_length: int, seed: int
) -> EncodedCorpus:
    """Tokenize, cut documents to ``max_length`` tokens and each domain to ``max_tokens``.

    A domain with too many tokens keeps whole documents in an order shuffled by ``seed``; the last one kept is cut.
    """
    rows: list[list[int]] = tokenizer([document.text for document in documents], verbose=False)["input_ids"]
    notes = []
    cut = sum(len(row) > max_length for row in rows)
    if cut:
        notes.append(
            f"{cut} of {len(rows)} documents are longer than {max_length} tokens (--max-length, or what the model"
            " reads at most) and were cut"
        )
    rows = [row[:max_length] for row in rows]
    if max_tokens is not None:
        rows, dropped = _limit_domains(documents, rows, max_tokens, seed)
        if dropped:
            notes.append(
                f"{dropped} of {len(rows)} documents were left out or cut to keep to {max_tokens} tokens per domain"
            )
    kept = [(document, row) for document, row in zip(documents, rows, strict=True) if row]
    if not kept:
        raise MoetoolError("the corpus has no tokens")
    tokens = np.concatenate([np.asarray(row, dtype=np.int32) for _, row in kept])
    starts = np.concatenate([[0], np.cumsum([len(row) for _, row in kept])])
    spans = tuple(
        TraceDocument(
            document.id, document.domain, document.group, int(start), len(row), document.sha256, task=document.task
        )
        for (document, row), start in zip(kept, starts, strict=False)
    )
    special = np.isin(tokens, np.asarray(sorted(tokenizer.all_special_ids), dtype=np.int32))
    _check_domains(documents, spans, special)
    return EncodedCorpus(spans, tokens, special, token_texts(tokenizer, np.unique(tokens).tolist()), tuple(notes))


def _check_domains(documents: Sequence[Document], spans: Sequence[TraceDocument], special: NDArray[np.bool_]) -> None:
    """Refuse a domain of which nothing is left to count."""
    counted = dict.fromkeys((document.domain for document in documents), 0)
    for span in spans:
        counted[span.domain] += int((~special[span.start : span.start + span.tokens]).sum())
    for domain, tokens in counted.items():
        if not tokens:
            raise MoetoolError(
                f"domain {domain!r} of the corpus has no token that is not special",
                "give it more text, or raise --max-length or --max-tokens",
            )


def _limit_domains(
    documents: Sequence[Document], rows: list[list[int]], max_tokens: int, seed: int
) -> tuple[list[list[int]], int]:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    left: dict[str, int] = {}
    limited: list[list[int]] = [[] for _ in rows]
    for index in order:
        budget = left.setdefault(documents[index].domain, max_tokens)
        limited[index] = rows[index][:budget]
        left[documents[index].domain] = budget - len(limited[index])
    return limited, sum(len(before) != len(after) for before, after in zip(rows, limited, strict=True))


def token_texts(tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
    """The text of each token, with the space that a token begins with (decoding one alone would lose it)."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = {}
    for token, piece in zip(ids, pieces, strict=True):
        if piece is not None and "\u2581" in piece:  # SentencePiece writes a space as a low line block
            texts[token] = piece.replace("\u2581", " ")
        else:
            texts[token] = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return texts
