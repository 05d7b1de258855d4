"""Planted preferences are called what they are: domain, pattern, language, vocabulary, or a task."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moetool.progress import SilentProgress
from moetool.statistics.specialization import analyse
from tests.statistics.domains import trace_of

WORDS = [" alpha", " beta", " gamma", " delta", " kappa", " omega", " sigma", " theta"]
DIGITS = ["1", "2", "3", "4"]
VOCABULARY = dict(enumerate(["<s>", *WORDS, *DIGITS, *(f" rare{n}" for n in range(8)), "中", "文", "字"]))
IDS = {text: number for number, text in VOCABULARY.items()}
DOCUMENTS, TOKENS, EXPERTS = 24, 240, 8


def planted(seed, texts, expert_zero, domains=4, names=None, translated=True):
    """K = 1: expert 0 is chosen with probability ``expert_zero(domain, text)``, the others alike; documents differ."""
    random = np.random.default_rng(seed)
    documents, tokens, chosen = [], [], []
    for domain in range(domains):
        for number in range(DOCUMENTS):
            words = texts(random, domain)
            if names and domain < 2 and translated:  # a name that both languages of a chapter have
                words[:12] = [f" rare{number % 8}"] * 12
            share = np.array([expert_zero(domain, word) for word in words]) * np.exp(random.normal(0, 0.2))
            zero = random.random(len(words)) < share
            chosen.append(np.where(zero, 0, random.integers(1, EXPERTS, len(words))))
            tokens += [IDS[word] for word in words]
            group = f"chapter {number}" if names and domain < 2 else f"{domain}-{number}"
            documents.append((names[domain] if names else f"d{domain}", group, len(words)))
    trace = trace_of(documents, [np.concatenate(chosen)[:, None]], EXPERTS, np.array(tokens))
    return replace(trace, vocabulary=VOCABULARY)


def mixed_text(share_of_digits):
    def write(random, domain):
        digit = random.random(TOKENS) < share_of_digits[domain]
        return [random.choice(DIGITS) if d else random.choice(WORDS) for d in digit]

    return write


def kinds(trace):
    result = analyse(trace, 0, 400, 200, SilentProgress())
    assert result.specialists is not None
    assert result.kinds is not None
    found = zip(result.specialists.cell, result.specialists.domain, result.kinds, strict=True)
    return {result.counts.domains[domain]: kind for cell, domain, kind in found if cell == 0}


def test_a_digit_expert_is_a_pattern_wherever_digits_are_frequent():
    trace = planted(0, mixed_text([0.6, 0.2, 0.2, 0.2]), lambda domain, word: 0.5 if word in DIGITS else 0.05)
    found = kinds(trace)["d0"]
    assert (found.kind, found.explained_by) == ("pattern", "digit")
    assert found.class_lift == pytest.approx(1.0, abs=0.15)


def test_a_taste_for_a_domain_survives():
    trace = planted(1, mixed_text([0.3, 0.2, 0.3, 0.2]), lambda domain, word: 0.4 if domain == 0 else 0.1)
    found = kinds(trace)["d0"]
    assert (found.kind, found.explained_by) == ("domain", "")
    # r = 4, so the lift of four domains is 16/7, at equal classes and for equal tokens.
    assert found.class_lift == pytest.approx(16 / 7, rel=0.1)
    assert found.token_lift == pytest.approx(16 / 7, rel=0.1)
    assert found.token_coverage == pytest.approx(1.0)


def test_half_of_each_is_mixed():
    trace = planted(
        2, mixed_text([0.8, 0.1, 0.1, 0.1]),
        lambda domain, word: (0.6 if word in DIGITS else 0.06) * (1.3 if domain == 0 else 1),
    )  # fmt: skip
    found = kinds(trace)["d0"]
    assert (found.kind, found.explained_by) == ("mixed", "digit")


def test_a_taste_for_words_of_one_class_is_no_taste_for_the_domain():
    """Domain 0 has more of the word alpha, which expert 0 takes anywhere: the classes are the same, the tokens not."""

    def write(random, domain):
        alpha = random.random(TOKENS) < (0.6 if domain == 0 else 0.1)
        return [WORDS[0] if a else random.choice(WORDS[1:]) for a in alpha]

    found = kinds(planted(3, write, lambda domain, word: 0.6 if word == WORDS[0] else 0.06))["d0"]
    assert (found.kind, found.explained_by) == ("mixed", "vocabulary")
    assert found.token_low is not None
    assert found.token_low <= 1


def test_the_same_chapters_in_another_language_tell_language_from_topic():
    names = ["course_en", "course_de", "novel", "law"]

    def expert_zero(domain, word):
        return 0.4 if names[domain] == "course_de" else 0.1

    assert kinds(planted(4, mixed_text([0.2] * 4), expert_zero, names=names))["course_de"].kind == "language"
    # A topic: both languages of the course.
    found = kinds(planted(5, mixed_text([0.2] * 4), lambda d, w: 0.4 if d < 2 else 0.1, names=names))
    assert {found[name].kind for name in names[:2]} == {"domain"}


def test_chapters_of_one_name_are_not_yet_the_same_texts():
    """Names that coincide, of texts that have nothing in common."""
    trace = planted(
        4, mixed_text([0.2] * 4), lambda domain, word: 0.4 if domain == 1 else 0.1, names=list("abcd"), translated=False
    )
    assert kinds(trace)["b"].kind == "domain"


def test_a_script_that_only_one_domain_has_is_a_language():
    def write(random, domain):
        texts = ["中", "文", "字"] if domain == 0 else WORDS
        return [random.choice(texts) for _ in range(TOKENS)]

    found = kinds(planted(6, write, lambda domain, word: 0.4 if domain == 0 else 0.1))["d0"]
    assert (found.kind, found.explained_by) == ("language", "script_han")


def test_a_taste_for_beginnings_is_a_pattern_where_documents_are_short():
    """Domain 0 has documents of 24 tokens, the others 240: expert 0 takes the first 16 tokens of any document."""
    random = np.random.default_rng(0)
    documents, tokens, chosen = [], [], []
    for domain in range(4):
        for number in range(DOCUMENTS):
            length = 24 if domain == 0 else TOKENS
            zero = (np.arange(length) < 16) & (random.random(length) < 0.6)
            chosen.append(np.where(zero, 0, random.integers(1, EXPERTS, length)))
            tokens += [IDS[random.choice(WORDS)] for _ in range(length)]
            documents.append((f"d{domain}", f"{domain}-{number}", length))
    trace = trace_of(documents, [np.concatenate(chosen)[:, None]], EXPERTS, np.array(tokens))
    found = kinds(replace(trace, vocabulary=VOCABULARY))["d0"]
    assert (found.kind, found.explained_by) == ("pattern", "document_start")


def test_running_ids_are_no_parallel_texts():
    """Groups that only repeat the documents' own ids say nothing of the texts of another domain."""
    names = ["one", "two", "three", "four"]
    trace = planted(5, mixed_text([0.2] * 4), lambda domain, word: 0.4 if domain == 0 else 0.1)
    documents = tuple(
        replace(document, id=str(index % DOCUMENTS), group=str(index % DOCUMENTS), domain=names[index // DOCUMENTS])
        for index, document in enumerate(trace.documents)
    )
    assert kinds(replace(trace, documents=documents))["one"].kind == "domain"


def test_tasks_with_one_document_each_are_not_tested():
    trace = planted(1, mixed_text([0.2] * 4), lambda domain, word: 0.1)
    documents = tuple(
        replace(document, domain=f"t{index // 2}", task=("sum", "tr")[index % 2])
        for index, document in enumerate(trace.documents)
    )
    result = analyse(replace(trace, documents=documents), 0, 400, 200, SilentProgress())
    assert result.tasks is not None
    assert len(result.tasks.crossed) == 48
    assert result.task_specialists is None


def test_without_texts_nothing_is_said():
    trace = replace(planted(1, mixed_text([0.2] * 4), lambda d, w: 0.4 if d == 0 else 0.1), vocabulary={})
    assert analyse(trace, 0, 400, 200, SilentProgress()).kinds is None


def with_tasks(trace, effect, seed):
    """Every document once more with another task; the second time expert 1 is taken ``effect`` times as often."""
    random = np.random.default_rng(seed)
    twice = tuple(
        replace(document, id=f"{document.id}/{task}", task=task, start=document.start + shift)
        for shift, task in ((0, "summarise"), (len(trace.tokens), "translate"))
        for document in trace.documents
    )
    layer = trace.layers[0]
    again = layer.chosen.copy()
    again[random.random(len(again)) < (effect - 1) / (EXPERTS - 1)] = 1
    chosen = np.concatenate([layer.chosen, again])
    return replace(
        trace, documents=twice, tokens=np.tile(trace.tokens, 2), special=np.tile(trace.special, 2),
        layers=(replace(layer, chosen=chosen),),
    )  # fmt: skip


def test_tasks_are_told_apart_from_domains():
    trace = planted(1, mixed_text([0.2] * 4), lambda domain, word: 0.4 if domain == 0 else 0.1)
    result = analyse(with_tasks(trace, 2.5, 0), 0, 400, 200, SilentProgress())
    assert result.tasks is not None
    assert result.tasks.crossed == ("d0", "d1", "d2", "d3")
    found = result.task_specialists
    places = [(int(c), result.tasks.tasks[d]) for c, d in zip(found.cell, found.domain, strict=True)]
    assert places[0] == (1, "translate")
    assert found.lift[0] > 1.3
    assert {task for _, task in places[1:]} <= {"summarise"}  # what expert 1 took, the others have lost
    none = analyse(with_tasks(trace, 1.0, 0), 0, 400, 200, SilentProgress()).task_specialists
    assert not len(none.cell)


def test_a_task_of_one_domain_only_cannot_be_told_apart():
    trace = planted(1, mixed_text([0.2] * 4), lambda domain, word: 0.1)
    documents = tuple(replace(document, task=document.domain) for document in trace.documents)
    result = analyse(replace(trace, documents=documents), 0, 400, 200, SilentProgress())
    assert result.tasks is not None
    assert result.tasks.crossed == ()
    assert result.task_specialists is None
