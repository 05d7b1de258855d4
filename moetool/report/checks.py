"""The checks of ``--fail-if``: expressions such as ``dead_experts > 0`` enter, their outcomes on a Report leave.

One grammar for every key of a summary::

    check  := KEY OP LIMIT
    OP     := ">" | ">=" | "<" | "<=" | "==" | "!="
    LIMIT  := AMOUNT | "baseline" | "baseline" "*" number | "baseline" ("+" | "-") AMOUNT
    AMOUNT := number [unit], where the unit is % (of shares and ratios), k, M, B or G, T, P (thousand to 10**15),
              or B, kB, MB, GB, TB, KiB, MiB, GiB, TiB (of bytes)

``baseline`` is the value of the same key in the report of ``--baseline``. A tolerance relative to it is a factor, as in
``baseline * 1.05``. One in the key's own unit is added, as in ``baseline + 0.05`` or ``baseline + 2 GiB``, and never in
%, which could be read both ways.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from moetool.errors import MoetoolError
from moetool.report.report import Check, Column, Report, Unit, Value
from moetool.report.values import cell_width, inert, write_value

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CHANGES: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_BYTES = {
    **{"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
    **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
}
_COUNTS = {"k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12, "P": 10**15}
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r">=|<=|==|!=|>|<")
_TITLE = re.compile(r"[\w ,()/-]+?(?=\s*[<>=!])")
"""What stands in the place of a key and is none: perhaps the title that reports give it."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_UNIT = re.compile(r"%|[A-Za-z]+")
_BASELINE = re.compile(r"\s*baseline\b")
_CHANGE = re.compile(r"[-+*]")
_HINT = 'write KEY OP VALUE, such as --fail-if "dead_experts > 0" or --fail-if "total_bytes >= 80 GiB"'


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed ``--fail-if``: the check fails where ``key operator limit`` holds."""

    text: str
    key: str
    operator: str
    number: float
    unit: str | None
    """As written; what it stands for depends on the key: ``1.5B`` parameters, ``512 B`` bytes."""
    change: str | None = None
    """The limit is the number (None), or the baseline ``+``, ``-`` or ``*`` the number."""


def parse(text: str) -> Expression:
    """Parse one expression; MoetoolError restates it and points at the column that is wrong."""
    key, end = _take(text, 0, _KEY, "the name of a summary key")
    title = _TITLE.match(text, len(text) - len(text.lstrip()))
    if title is not None and len(title[0]) > len(key):
        key, end = title[0], title.end()
    sign, end = _take(text, end, _OPERATOR, "one of > >= < <= == !=")
    change: str | None = None
    number, unit = 0.0, None
    baseline = _BASELINE.match(text, end)
    if baseline is None:
        number, unit, end = _amount(text, end)
    else:
        change, end = "+", baseline.end()
        if text[end:].strip():
            change, end = _take(text, end, _CHANGE, "one of + - *, or the end")
            number, unit, end = _amount(text, end)
            if unit == "%" or (unit and change == "*"):
                raise _wrong(text, end - len(unit), "the end (5 % more is baseline * 1.05, 0.05 more baseline + 0.05)")
    if text[end:].strip():
        raise _wrong(text, end + len(text[end:]) - len(text[end:].lstrip()), "the end")
    return Expression(text, key, sign, number, unit, change)


def _amount(text: str, start: int) -> tuple[float, str | None, int]:
    """A number and its unit, and where they end."""
    number, end = _take(text, start, _NUMBER, "a number")
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise MoetoolError(f'--fail-if "{inert(text)}": {number} is too large a number', _HINT)
    if not text[end:].strip():
        return value, None, end
    unit, end = _take(text, end, _UNIT, "a unit")
    if unit != "%" and unit not in _BYTES and unit not in _COUNTS:
        units = ", ".join(dict.fromkeys(["%", *_COUNTS, *_BYTES]))
        raise _wrong(text, end - len(unit), f"one of the units {units}")
    return value, unit, end


def _take(text: str, start: int, pattern: re.Pattern[str], expected: str) -> tuple[str, int]:
    """The next piece after spaces, and where it ends."""
    start += len(text[start:]) - len(text[start:].lstrip())
    match = pattern.match(text, start)
    if match is None:
        raise _wrong(text, start, expected)
    return match[0], match.end()


def _wrong(text: str, column: int, expected: str) -> MoetoolError:
    before = cell_width(inert(text[:column]))
    message = f'--fail-if "{inert(text)}": expected {expected} at column {column + 1}'
    return MoetoolError(f"{message}\n  {inert(text)}\n  {' ' * before}^", _HINT)


def validate_keys(
    expressions: Sequence[Expression], keys: Sequence[str | Column], baseline: Mapping[str, Value] | None = None
) -> None:
    """Raise MoetoolError for a key that the summary does not have, and with Columns for a unit that it is not in.

    ``baseline`` is the summary of ``--baseline``: one must be there where an expression names it, and be named where
    it is there.
    """
    columns = {key.key: key for key in keys if isinstance(key, Column)}
    names = [key.key if isinstance(key, Column) else key for key in keys]
    for expression in expressions:
        if expression.key not in names:
            near = near_keys(expression.key, {name: columns[name].title if name in columns else "" for name in names})
            raise MoetoolError(
                f'--fail-if "{inert(expression.text)}": the summary has no {inert(expression.key)}; it has '
                f"{', '.join(names)}",
                f"did you mean {near[0]}?" if near else _HINT,
            )
        if expression.change and baseline is None:
            raise MoetoolError(f'--fail-if "{inert(expression.text)}" needs a baseline', "add --baseline report.json")
        if expression.key in columns:
            _amount_in(columns[expression.key].unit, expression)
    if baseline is not None and not any(expression.change for expression in expressions):
        raise MoetoolError("--baseline: no check compares with it", 'add --fail-if "KEY > baseline * 1.05"')


def near_keys(wanted: str, titles: Mapping[str, str], most: int = 1) -> list[str]:
    """Keys that somebody may have meant, the nearest first; ``titles`` are what reports call each key."""
    wanted = wanted.casefold().strip()
    same = [key for key, title in titles.items() if wanted in (key.casefold(), title.casefold())]
    return (same or get_close_matches(wanted, titles, n=most, cutoff=0.6))[:most]


def evaluate(
    report: Report, expressions: Sequence[Expression], baseline: Mapping[str, Value] | None = None
) -> tuple[Check, ...]:
    """The outcome of each expression on the report's summary; a value that is undefined, here or there, fails."""
    validate_keys(expressions, report.summary_columns, baseline)
    units = {column.key: column.unit for column in report.summary_columns}
    return tuple(_check(report, expression, units[expression.key], baseline or {}) for expression in expressions)


def _check(report: Report, expression: Expression, unit: Unit, baseline: Mapping[str, Value]) -> Check:
    value = report.summary[expression.key]
    if value is None:
        message = f"{expression.key} is undefined here, and a check of an undefined value fails"
        return Check(expression.text, expression.key, None, True, message)
    if isinstance(value, str):
        raise MoetoolError(f'--fail-if "{inert(expression.text)}": {expression.key} is the text {inert(value)}', _HINT)
    limit, told = _amount_in(unit, expression), ""
    if expression.change:
        earlier = baseline.get(expression.key)
        if not isinstance(earlier, int | float) or isinstance(earlier, bool) != isinstance(value, bool):
            message = f"{expression.key} is {_write(value, unit)}; the baseline has no such number, and a check without"
            return Check(expression.text, expression.key, value, True, f"{message} one fails")
        limit = _CHANGES[expression.change](earlier, limit)
        told = f"; the baseline has {_write(earlier, unit, value)}"
    message = f"{expression.key} is {_write(value, unit, limit)}{told}"
    return Check(expression.text, expression.key, value, _OPERATORS[expression.operator](value, limit), message)


def _write(value: float, unit: Unit, beside: float | None = None) -> str:
    """A number for people; exactly too if it is whole, or looks like the one beside it: ``93405585408 (86.99 GiB)``."""
    exact, human = repr(value), write_value(value, unit)
    if human.replace(",", "") == exact or (isinstance(value, float) and human != write_value(beside, unit)):
        return human if isinstance(value, float) else exact
    return f"{exact} ({human})"


def _amount_in(unit: Unit, expression: Expression) -> float:
    """The expression's number in the key's own unit; MoetoolError where the units do not agree."""
    name = expression.unit
    if name is None:
        return expression.number
    if name == "%" and unit in ("share", "ratio", "number"):
        return expression.number / 100
    if unit == "bytes" and name in _BYTES:
        return expression.number * _BYTES[name]
    if unit in ("count", "parameters", "flops", "number") and name in _COUNTS:
        return expression.number * _COUNTS[name]
    raise MoetoolError(
        f'--fail-if "{inert(expression.text)}": {expression.key} is measured in {unit}, which {name} is no unit of',
        _HINT,
    )
