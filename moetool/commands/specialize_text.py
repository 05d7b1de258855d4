"""Tables of ``specialize`` about the text of tokens: a Specialization enters, rows of patterns and tokens leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from moetool.capture.trace import RoutingTrace
from moetool.commands.specialize_tables import SPECIALIST_COLUMNS, Row
from moetool.corpus.token_classes import MEANINGS
from moetool.report.report import Column, Table
from moetool.statistics.significance import benjamini_hochberg
from moetool.statistics.specialization import FALSE_DISCOVERY_RATE, Specialization

PATTERN_COLUMNS: tuple[Column, ...] = (
    *SPECIALIST_COLUMNS[:2],
    Column("token_class", "Class", "text", help="Kind of token, see the table of classes."),
    Column("lift", "Lift", "ratio", help="Choices of the class over those of other tokens in the same documents."),
    Column("lift_low", "Lift from", "ratio", help="95 % t interval over documents."),
    Column("lift_high", "to", "ratio", help="95 % t interval over documents."),
    Column("q_value", "q", help="p, corrected for all layers, experts and classes (Benjamini-Hochberg)."),
    Column("p_value", "p", help="One-sided, signs of the documents' differences flipped, on the other half."),
)
CLASS_COLUMNS: tuple[Column, ...] = (
    Column("token_class", "Class", "text", help="Kind of token by its text and its neighbours; classes overlap."),
    Column("meaning", "What it is", "text", help="How a token comes to be in it."),
    Column("token_share", "Tokens", "share", help="Of all counted tokens."),
    Column(
        "excess_information_bits", "Information", "bits", help="Divergence from the choices around, mean over layers."
    ),
    Column("significant_layers", "Layers", "count", help="Layers where that is significant, q < 0.05."),
    Column("patterns", "Experts", "count", help="Experts that prefer it, in the table of patterns."),
)
TOKEN_COLUMNS: tuple[Column, ...] = (
    *SPECIALIST_COLUMNS[:2],
    Column("token", "Token", "text", help="Text of the token."),
    Column("token_id", "Id", "number", True, "Its number in the vocabulary."),
    Column("count", "Occurrences", "count", help="On the half of the documents that confirmed it."),
    Column("chosen", "Chosen", "count", help="Of these, how many chose the expert."),
    Column("share", "Share", "share", help="Chosen over occurrences."),
    Column("expected_share", "Expected", "share", help="The share of the other tokens of the same documents."),
    Column("lift", "Lift", "ratio", help="Share over expected."),
    Column("lift_low", "from", "ratio", help="Lower end of its 95 % interval over documents."),
)
PATTERN_NOTE = "Experts that prefer a kind of token over the others of the same documents, whatever the domain."
TOKEN_NOTE = (
    "Tokens for which the surest specialists are chosen more than for the others of the same documents, whatever the "
    "domain; found on one half of the documents, shown on the other."
)


def text_tables(trace: RoutingTrace, result: Specialization) -> tuple[Table, Table, Table]:
    """Pattern experts, tokens of specialists, and classes of tokens; without rows where no text is known."""
    patterns, tokens = tuple(_pattern_rows(result)), tuple(_token_rows(trace, result))
    classes = tuple(_class_rows(result, patterns))
    return (
        Table("patterns", "Pattern preferences", PATTERN_COLUMNS, patterns, PATTERN_NOTE, 10, optional=True),
        Table("tokens", "Tokens of specialists", TOKEN_COLUMNS, tokens, TOKEN_NOTE, 12, optional=True),
        Table("classes", "Classes of tokens", CLASS_COLUMNS, classes, optional=True),
    )


def _pattern_rows(result: Specialization) -> Iterator[Row]:
    """Experts that surely prefer a class of tokens, the surest first."""
    if result.text is None:
        return
    tests, found = result.text.patterns, result.text.found
    low, high = tests.lifts.select(found).interval()
    for i, row in enumerate(found.tolist()):
        yield {
            "layer": result.counts.layers[int(tests.layer[row])].layer,
            "expert": int(tests.expert[row]),
            "token_class": result.text.names[int(tests.token_class[row])],
            "lift": float(np.exp(tests.lifts.log_lift[row])),
            "lift_low": float(low[i]),
            "lift_high": float(high[i]),
            "q_value": float(tests.q_value[row]),
            "p_value": float(tests.p_value[row]),
        }


def _class_rows(result: Specialization, patterns: Sequence[Row]) -> Iterator[Row]:
    """What each class of tokens is, and how differently it chooses."""
    if result.text is None:
        return
    information = result.text.information
    q_value = benjamini_hochberg(information.p_value)
    for i, name in enumerate(result.text.names):
        known = ~np.isnan(information.excess_bits[:, i])
        yield {
            "token_class": name,
            "meaning": MEANINGS.get(name, f"letters of the script {name.removeprefix('script_')}"),
            "token_share": float(result.text.class_share[i]),
            "excess_information_bits": float(information.excess_bits[known, i].mean()) if known.any() else None,
            "significant_layers": int((q_value[known, i] < FALSE_DISCOVERY_RATE).sum()) if known.any() else None,
            "patterns": sum(row["token_class"] == name for row in patterns),
        }


def _shown(text: str, token: int) -> str:
    """The text, or the number where it is a part of a character."""
    return f"token {token}" if "\ufffd" in text or not text else text


def _by_certainty(result: Specialization) -> list[tuple[int, int]]:
    """Layer index and expert of those whose tokens are listed, the surest specialist first."""
    if result.text is None or result.specialists is None:
        return []
    starts = result.counts.starts
    cells = {place: int(starts[place[0]]) + place[1] for place in result.text.preferred}
    rank = {cell: number for number, cell in reversed(list(enumerate(result.specialists.cell.tolist())))}
    return sorted(cells, key=lambda place: rank[cells[place]])


def _token_rows(trace: RoutingTrace, result: Specialization) -> Iterator[Row]:
    """Tokens that the surest specialists prefer."""
    if result.text is None:
        return
    for place, expert in _by_certainty(result):
        listed = result.text.preferred[place, expert]
        for i, number in enumerate(listed.kind.tolist()):
            token = int(result.text.ids[number])
            yield {
                "layer": result.counts.layers[place].layer,
                "expert": expert,
                "token": _shown(trace.vocabulary.get(token, ""), token),
                "token_id": token,
                "count": int(listed.count[i]),
                "chosen": int(listed.chosen[i]),
                "share": float(listed.share[i]),
                "expected_share": float(listed.expected_share[i]),
                "lift": float(listed.lift[i]),
                "lift_low": float(listed.low[i]),
            }
