"""Reports read back by parsers that are not ours: text of a format enters, plain tables and messages leave."""

import csv
import re
from io import StringIO
from urllib.parse import unquote
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markdown_it.token import Token

Rows = list[list[str]]

# Rich brings this parser.
_MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_COMMAND = re.compile(r"::(notice|warning|error) title=([^:,\r\n]*)::([^\r\n]*)\n")


def read_csv(text: str) -> dict[str, list[dict[str, tuple[str, str]]]]:
    """Value and unit of every key of every row of every table; rows are numbered from 0, without gaps."""
    lines = list(csv.reader(StringIO(text, newline=""), strict=True))
    assert lines[0] == ["table", "row", "key", "value", "unit"]
    tables: dict[str, list[dict[str, tuple[str, str]]]] = {}
    for table, number, key, value, unit in lines[1:]:
        rows = tables.setdefault(table, [])
        if int(number) == len(rows):
            rows.append({})
        assert int(number) == len(rows) - 1
        assert key not in rows[-1]
        rows[-1][key] = (value, unit)
    return tables


def markdown_tokens(text: str) -> list[Token]:
    """What a Markdown page is made of, blocks and what is in their lines, as GitHub reads it."""
    return [token for block in _MARKDOWN.parse(text) for token in (block, *(block.children or ()))]


def read_markdown(text: str) -> list[tuple[str, str | Rows]]:
    """Blocks by kind: texts of headings (``h2``), paragraphs (``p``) and items (``li``), rows of tables (``table``)."""
    blocks: list[tuple[str, str | Rows]] = []
    kind = "p"
    rows: Rows = []
    for token in _MARKDOWN.parse(text):
        if token.type == "inline":
            plain = "".join("\n" if part.type.endswith("break") else part.content for part in token.children or ())
            if kind == "cell":
                rows[-1].append(plain)
            else:
                blocks.append((kind, plain))
        elif token.type == "table_open":
            rows, kind = [], "cell"
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            blocks.append(("table", rows))
            kind = "p"
        elif token.type in ("heading_open", "list_item_open"):
            kind = token.tag
        elif token.type in ("heading_close", "list_item_close"):
            kind = "p"
    return blocks


def read_github(text: str) -> list[tuple[str, str, str]]:
    """Command, title and message of every line; there are no other lines."""
    found = _COMMAND.findall(text)
    assert len(found) == text.count("\n")
    return [(command, unquote(title), unquote(message)) for command, title, message in found]


def read_junit(text: str) -> ElementTree.Element:
    """The only suite."""
    (suite,) = ElementTree.fromstring(text.encode("utf-8"))
    return suite
