"""Text to read: enters as ``[NAME=]FILE`` arguments, leaves as documents with a domain and a group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moetool.errors import MoetoolError

FORMATS = (".txt", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Document:
    """One text, read as one input sequence."""

    id: str
    domain: str
    group: str
    """The independent unit of all statistics; documents of one chapter, file or author share it."""
    text: str
    task: str = ""
    """What is asked of the text (an instruction); empty where the corpus has no tasks."""

    @property
    def sha256(self) -> str:
        """Of the text's UTF-8 bytes, as hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


def read_corpus(arguments: Sequence[str]) -> tuple[Document, ...]:
    """The documents of every ``[NAME=]FILE``, in order.

    ``FILE`` is ``.txt`` (one document), ``.jsonl`` or ``.parquet`` (``text``, optionally ``id``, ``group``,
    ``domain``, ``task``), or a folder of such files. The domain is ``NAME``, else the record's own, else the file's
    stem.
    Raises MoetoolError for anything that is missing, empty, binary or malformed, naming file and record.
    """
    documents: list[Document] = []
    for argument in arguments:
        name, path = split_argument(argument)
        found = list(_read_path(name, path))
        if not found:
            raise MoetoolError(f"--text {argument}: no document with text in it", "give a file that has some text")
        documents += found
    _check_ids(documents)
    return tuple(documents)


def split_argument(argument: str, option: str = "--text") -> tuple[str | None, Path]:
    """``NAME=FILE`` or ``FILE``; a path that exists wins over its reading as ``NAME=FILE``."""
    name, separator, rest = argument.partition("=")
    if argument and (not separator or Path(argument).exists()):
        return None, Path(argument)
    if not name or not rest:
        raise MoetoolError(f"{option} {argument}: expected NAME=FILE", "for example code=programs.jsonl")
    return _printable(name), Path(rest)


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8 (the system's names may be so), with those bytes spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_path(domain: str | None, path: Path) -> Iterator[Document]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in FORMATS and file.is_file())
        if not files:
            raise MoetoolError(f"--text {path}: no {', '.join(FORMATS)} file in this folder")
        for file in files:
            prefix = _printable(file.relative_to(path).with_suffix("").as_posix())
            yield from _read_file(domain or _printable(path.resolve().name), file, prefix)
    elif path.is_file():
        yield from _read_file(domain, path, _printable(path.stem))
    else:
        raise MoetoolError(f"--text {path}: no such file or folder", "check the path; NAME=FILE names a domain")


def _read_file(domain: str | None, path: Path, prefix: str) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        records = _jsonl_records(path)
    elif path.suffix == ".parquet":
        records = _parquet_records(path)
    elif path.suffix == ".txt":
        text = _read_text(path)
        if text.strip():
            yield Document(prefix, domain or _printable(path.stem), prefix, text)
        return
    else:
        raise MoetoolError(f"--text {path}: unknown kind of file", f"known: {', '.join(FORMATS)} or a folder of them")
    for number, record in records:
        document = _from_record(domain, path, prefix, number, record)
        if document.text.strip():
            yield document


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MoetoolError(f"--text {path}: {error.strerror or error}") from None
    if b"\0" in data:
        raise MoetoolError(f"--text {path}: this is a binary file (it has a NUL byte)", "give text in UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MoetoolError(
            f"--text {path}: not UTF-8 (byte {error.start}: 0x{data[error.start]:02x})",
            "convert it, for example with: iconv -f latin1 -t utf-8",
        ) from None


def _jsonl_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MoetoolError(f"--text {path}: line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise MoetoolError(f"--text {path}: line {number} is not a JSON object", 'expected {"text": "..."}')
        yield number, record


def _parquet_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        wanted = [name for name in ("text", "id", "group", "domain", "task") if name in table.schema_arrow.names]
        number = 0
        for batch in table.iter_batches(columns=wanted):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowException, OSError) as error:
        raise MoetoolError(f"--text {path}: not a readable parquet file: {error}") from None


def _from_record(domain: str | None, path: Path, prefix: str, number: int, record: Mapping[str, Any]) -> Document:
    where = f"--text {path}: record {number}"
    text = record.get("text")
    if not isinstance(text, str):
        raise MoetoolError(f'{where} has no string called "text"', 'expected {"text": "..."}')
    fields = {}
    for key in ("id", "group", "domain", "task"):
        value = record.get(key)
        if value is not None and not isinstance(value, str | int):
            raise MoetoolError(f'{where}: "{key}" is neither a string nor a whole number')
        fields[key] = None if value is None else str(value)
    try:
        "".join((text, *filter(None, fields.values()))).encode("utf-8")
    except UnicodeEncodeError:
        raise MoetoolError(f"{where} holds half of a surrogate pair, which is no character") from None
    identity = fields["id"] or f"{prefix}#{number}"
    named = domain or fields["domain"] or _printable(path.stem)
    return Document(identity, named, fields["group"] or identity, text, fields["task"] or "")


def _check_ids(documents: Sequence[Document]) -> None:
    seen: set[tuple[str, str]] = set()
    for document in documents:
        key = (document.domain, document.id)
        if key in seen:
            raise MoetoolError(
                f"two documents of domain {document.domain!r} have the id {document.id!r}",
                "give every document an id of its own, or leave the ids out",
            )
        seen.add(key)
