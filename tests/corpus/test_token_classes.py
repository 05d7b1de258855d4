"""Token classes of a text that is spelled out."""

import numpy as np
import pytest

from moetool.corpus.token_classes import classify_tokens

PIECES = [
    "Un",
    "der",
    "stand",
    " 1",
    "2",
    "3",
    ".",
    "\n   ",
    "def",
    " Δx",
    " 中文",
    "文",
    "\ufffd",
    "x1",
    "",
    " Ж",
    "def",
]
EXPECTED = [
    "word_start", "word_continuation", "word_continuation", "digit", "digit", "digit", "punctuation", "whitespace",
    "word_start", "script_greek", "script_han", "script_han", "fragment", "mixed", "mixed", "script_cyrillic",
    "word_continuation",
]  # fmt: skip


def classes(pieces, starts=(0,)):
    vocabulary = dict(enumerate(dict.fromkeys(pieces)))
    index = {text: number for number, text in vocabulary.items()}
    tokens = np.array([index[piece] for piece in pieces], np.int32)
    return classify_tokens(tokens, vocabulary, np.array(starts))


def test_every_token_is_in_one_class_of_the_partition():
    found = classes(PIECES)
    assert [found.names[part] for part in found.partition] == EXPECTED
    assert sum(found.mask(name) for name in found.names[: found.parts]).tolist() == [1] * len(PIECES)


@pytest.mark.parametrize(
    ("name", "places"),
    [("capitalised", [0, 9, 15]), ("inside_number", [4, 5]), ("repeated", [16]), ("document_start", list(range(16)))],
)
def test_classes_that_overlap(name, places):
    assert np.flatnonzero(classes(PIECES).mask(name)).tolist() == places


def test_a_document_begins_anew():
    """Words do not go on over its start, nor do numbers, nor is its first token repeated."""
    found = classes(["Un", "der", "der", "7", "7"], starts=(0, 2, 4))
    assert [found.names[part] for part in found.partition] == [
        "word_start", "word_continuation", "word_start", "digit", "digit",
    ]  # fmt: skip
    assert not found.mask("repeated").any()
    assert not found.mask("inside_number").any()


def test_a_token_far_back_is_not_repeated():
    near, far = ["a"] + [f" b{n}" for n in range(31)] + ["a"], ["a"] + [f" b{n}" for n in range(32)] + ["a"]
    assert classes(near).mask("repeated")[-1]
    assert not classes(far).mask("repeated")[-1]


def test_without_texts_nothing_is_known():
    assert classify_tokens(np.arange(3, dtype=np.int32), {}, np.array([0])) is None
