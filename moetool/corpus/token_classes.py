"""What kind of text a token is: token ids and their texts enter, membership in named classes leaves.

Classes come from the tokenizer's own text of a token (with the space that it begins with) and from its neighbours in
the document, so a trace needs no tokenizer. Classes overlap; the ``partition`` gives every token exactly one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

REPEAT_TOKENS = 32
"""How far back a token is looked for, to call it repeated."""
START_TOKENS = 16
"""Tokens that are the start of a document."""
SCRIPTS = {
    "CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana", "HANGUL": "hangul", "CYRILLIC": "cyrillic",
    "GREEK": "greek", "ARABIC": "arabic", "HEBREW": "hebrew", "DEVANAGARI": "devanagari", "THAI": "thai",
    "LATIN": "latin",
}  # fmt: skip
"""First words of the Unicode names of letters; all others are of the script ``other``."""
MEANINGS = {
    "whitespace": "spaces, indentation and line ends only",
    "digit": "digits only",
    "punctuation": "punctuation and symbols only",
    "fragment": "part of a character's bytes",
    "word_start": "begins a word of Latin letters",
    "word_continuation": "goes on with a word of Latin letters",
    "mixed": "letters and other characters, or nothing",
    "capitalised": "begins with a capital letter",
    "inside_number": "digits directly behind digits",
    "repeated": f"occurred among the {REPEAT_TOKENS} tokens before it",
    "document_start": f"among the first {START_TOKENS} tokens of a document",
}
"""What a class is, for reports; a class ``script_X`` is letters of the script X."""


@dataclass(frozen=True, slots=True)
class TokenClasses:
    """Which token is of which kind."""

    names: tuple[str, ...]
    """Of all classes, those of the partition first."""
    partition: NDArray[np.uint8]
    """``[T]`` index of the one class of the partition that a token is in."""
    parts: int
    """Classes in the partition."""
    members: Mapping[str, Mask]
    """``[T]`` for the classes that are not of the partition."""

    def mask(self, name: str) -> Mask:
        """``[T]`` True for the tokens of a class."""
        if name in self.members:
            return self.members[name]
        of_class: Mask = self.partition == self.names.index(name)
        return of_class


def classify_tokens(
    tokens: NDArray[np.int32], vocabulary: Mapping[int, str], starts: NDArray[np.int64]
) -> TokenClasses | None:
    """Classes of ``tokens [T]``; ``starts`` are the first tokens of documents. None where no text is known."""
    if not vocabulary or not len(tokens):
        return None
    ids, place = np.unique(tokens, return_inverse=True)
    texts = [vocabulary.get(int(token), "") for token in ids]
    first = np.zeros(len(tokens), bool)
    first[starts[starts < len(tokens)]] = True
    kinds = np.array([_kind(text) for text in texts])[place]
    glued = np.array([_glued(text) for text in texts])[place]
    open_end = np.array([_ends_in_letter(text) for text in texts])[place]
    behind_word = np.concatenate([[False], open_end[:-1]]) & ~first
    latin = kinds == "latin"
    kinds = np.where(latin, np.where(glued & behind_word, "word_continuation", "word_start"), kinds)
    names, partition = np.unique(kinds, return_inverse=True)
    digit = kinds == "digit"
    capital = np.array([_first_letter(text).isupper() for text in texts])[place]
    members = {
        "capitalised": capital,
        "inside_number": digit & glued & np.concatenate([[False], digit[:-1]]) & ~first,
        "repeated": _repeated(place, first),
        "document_start": _position(first) < START_TOKENS,
    }
    every = (*names.tolist(), *members)
    return TokenClasses(every, partition.astype(np.uint8), len(names), members)


def _kind(text: str) -> str:
    """The class of a text without its neighbours; ``latin`` is a word or a part of one."""
    inner = text.strip()
    if not inner:
        return "whitespace" if text else "mixed"
    if "\ufffd" in inner:
        return "fragment"
    categories = {unicodedata.category(character)[0] for character in inner}
    if categories == {"N"}:
        return "digit"
    if categories <= {"P", "S"}:
        return "punctuation"
    if not categories <= {"L", "M"}:
        return "mixed"
    script = SCRIPTS.get(unicodedata.name(inner[0], "").split(" ")[0].split("-")[0], "other")
    return "latin" if script == "latin" else f"script_{script}"


def _glued(text: str) -> bool:
    return bool(text) and not text[0].isspace()


def _ends_in_letter(text: str) -> bool:
    return bool(text) and text[-1].isalpha()


def _first_letter(text: str) -> str:
    inner = text.lstrip()
    return inner[0] if inner and inner[0].isalpha() else ""


def _position(first: Mask) -> NDArray[np.int64]:
    """``[T]`` tokens of the same document before each token."""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


def _repeated(place: NDArray[np.int64], first: Mask) -> Mask:
    """``[T]`` True where the same token is among the REPEAT_TOKENS before it in its document."""
    order = np.argsort(place, kind="stable")
    same = np.concatenate([[False], np.diff(place[order]) == 0])
    distance = np.concatenate([[0], np.diff(order)])
    repeated = np.zeros(len(place), bool)
    repeated[order] = same & (distance <= REPEAT_TOKENS)
    within = np.empty(len(place), np.int64)
    within[order] = distance
    return repeated & (within <= _position(first))
