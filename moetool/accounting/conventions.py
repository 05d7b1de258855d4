"""Which convention a publisher counted in: a published figure and a model's amounts enter, names of conventions leave.

Exact integer arithmetic. Publishers truncate as well as round: 3,353,032,704 was published as 3.3B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from moetool.accounting.ledger import Ledger
from moetool.checkpoint.dtypes import BITS
from moetool.model.facts import ModelFacts

_FIGURE = re.compile(r"(?P<whole>\d+)(?:\.(?P<decimals>\d+))?\s?(?P<unit>[KMBT])", re.ASCII)
_EXPONENT = {"K": 3, "M": 6, "B": 9, "T": 12}


@dataclass(frozen=True, slots=True)
class Match:
    """A convention that reproduces a published figure."""

    convention: str
    by: Literal["rounding", "truncation"]
    """``rounding`` where both do; halves are rounded up."""


def matches(published: str, amounts: Mapping[str, int | None]) -> tuple[Match, ...]:
    """The conventions whose amount (parameters; None is skipped) is the published figure, in the order given.

    ``published`` is a number with one of the units K, M, B, T: as many digits as are written are compared, trailing
    zeros too. Empty where no convention gives the figure. Raises ValueError where the text is no such figure.
    """
    figure, quantum = _parse(published)
    found = []
    for convention, amount in amounts.items():
        if amount is None:
            continue
        if (2 * amount + quantum) // (2 * quantum) == figure:
            found.append(Match(convention, "rounding"))
        elif amount // quantum == figure:
            found.append(Match(convention, "truncation"))
    return tuple(found)


def describe(published: str | None, amounts: Mapping[str, int | None]) -> str | None:
    """The conventions behind a figure in words: those that round to it, else those that truncate to it.

    None where none does, and for a figure that nobody published.
    """
    found = matches(published, amounts) if published is not None else ()
    rounded = [match.convention for match in found if match.by == "rounding"]
    if rounded:
        return ", ".join(rounded)
    return ", ".join(f"{match.convention} (truncated)" for match in found) or None


def active_amounts(ledger: Ledger) -> dict[str, int | None]:
    """Active parameters per token by the name of the convention."""
    return {
        "all": ledger.active_parameters,
        "no-embedding": ledger.active_parameters_no_embedding,
        "no-embedding-no-head": ledger.active_parameters_no_embedding_no_head,
    }


def total_amounts(facts: ModelFacts, ledger: Ledger) -> dict[str, int | None]:
    """Total parameters by the name of the convention: alone, with multi-token prediction, and every stored element.

    Multi-token prediction is counted with the whole model, or with all but embedding and head (GLM-4.5, after a note in
    arXiv:2508.06471); None where a model has none. ``stored`` counts elements of any kind, as model hubs do: scales,
    buffers, second copies, packed weights once per element; None where a stored type is unknown.
    """
    total, mtp = ledger.total.parameters, ledger.parameters("mtp")
    ends = ledger.parameters("embedding") + ledger.parameters("lm_head")
    known = not facts.unknown_dtypes
    return {
        "total": total,
        "+mtp": total + mtp if mtp else None,
        "+mtp-no-embedding-no-head": total + mtp - ends if mtp else None,
        "stored": sum(group.bytes * 8 // BITS[group.dtype] for group in facts.groups) if known else None,
    }


def _parse(published: str) -> tuple[int, int]:
    """The digits of a figure as one number, and what the last of them stands for."""
    found = _FIGURE.fullmatch(published)
    exponent = _EXPONENT[found["unit"]] if found else 0
    decimals = (found["decimals"] or "") if found else ""
    if not found or len(decimals) > exponent:
        raise ValueError(f"{published!r} is no published figure: 12.9B, 800M and 1T are")
    return int(found["whole"] + decimals), 10 ** (exponent - len(decimals))
