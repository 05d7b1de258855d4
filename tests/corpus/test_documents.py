"""Corpora in every accepted form, and every way to get one wrong."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.corpus.documents import read_corpus
from moetool.errors import MoetoolError


def test_jsonl_takes_optional_fields(tmp_path):
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        json.dumps({"text": "eins", "id": "a", "group": "g", "domain": "german"})
        + "\r\n\n"
        + json.dumps({"text": "two", "id": 7})
        + "\n"
        + json.dumps({"text": "  \n"}),
        encoding="utf-8-sig",
    )
    first, second = read_corpus([str(path)])
    assert (first.id, first.domain, first.group, first.text) == ("a", "german", "g", "eins")
    assert (second.id, second.domain, second.group) == ("7", "mixed", "7")
    assert [document.domain for document in read_corpus([f"x={path}"])] == ["x", "x"]


def test_text_files_and_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("zwei", encoding="utf-8")
    (tmp_path / "sub" / "a.txt").write_text("eins", encoding="utf-8")
    (tmp_path / "sub" / "image.png").write_bytes(b"\0")
    documents = read_corpus([f"de={tmp_path}", str(tmp_path / "b.txt")])
    assert [(d.domain, d.id, d.text) for d in documents] == [
        ("de", "b", "zwei"),
        ("de", "sub/a", "eins"),
        ("b", "b", "zwei"),
    ]


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "group": ["g", "g"], "other": [1, 2]}), path)
    assert [(d.id, d.domain, d.group) for d in read_corpus([str(path)])] == [
        ("rows#1", "rows", "g"),
        ("rows#2", "rows", "g"),
    ]


def test_a_path_with_an_equals_sign(tmp_path):
    path = tmp_path / "lr=0.1.txt"
    path.write_text("text")
    assert read_corpus([str(path)])[0].domain == "lr=0.1"


def test_sha256_is_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert read_corpus([str(tmp_path / "a.txt")])[0].sha256 == digest


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "no document"),
        ("blank.jsonl", b'{"text": " "}\n\n', "no document"),
        ("binary.txt", b"ab\0c", "binary"),
        ("latin.txt", "käse".encode("latin-1"), "not UTF-8 .byte 1: 0xe4"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("list.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("deep.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("notext.jsonl", b'{"body": "a"}\n', 'record 1 has no string called "text"'),
        ("number.jsonl", b'{"text": 3}\n', 'record 1 has no string called "text"'),
        ("id.jsonl", b'{"text": "a", "id": [1]}\n', '"id" is neither'),
        ("twice.jsonl", b'{"text": "a", "id": "x"}\n{"text": "b", "id": "x"}\n', "have the id 'x'"),
        ("half-id.jsonl", b'{"text": "a", "id": "\\ud800"}\n', "surrogate"),
        ("half.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
        ("broken.parquet", b"PAR1 not really", "parquet"),
        ("notes.docx", b"text", "unknown kind"),
    ],
)
def test_bad_files_are_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MoetoolError, match=message) as caught:
        read_corpus([f"d={tmp_path / name}"])
    assert name in caught.value.message or "domain 'd'" in caught.value.message


def test_bad_arguments(tmp_path):
    for argument, message in (
        ("=x.txt", "NAME=FILE"),
        ("d=", "NAME=FILE"),
        ("d=/nowhere.txt", "no such file"),
        (f"d={tmp_path}", "no .txt"),
    ):
        with pytest.raises(MoetoolError, match=message):
            read_corpus([argument])
