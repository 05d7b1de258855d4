"""What-if: ``key=value`` and a config enter, the changed config leaves."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from moetool.errors import MoetoolError


def change_config(config: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy of a config with keys set: wherever a key stands, in nested configs too, or at a dotted path.

    Values are JSON, or text where they are none. Raises MoetoolError for a change that is not ``key=value`` and for a
    key that the config does not have, with the nearest that it has: a slip of the pen must not go unnoticed.
    """
    changed = copy.deepcopy(dict(config))
    for change in changes:
        path, equals, value = change.partition("=")
        path = path.strip()
        if not equals or not path:
            raise MoetoolError(f"--set {change!r} is no key=value", "write --set num_experts_per_tok=4")
        places = [place for place in _places(changed) if path in place]
        head, _, last = path.rpartition(".")
        if not places and head:
            places = [place for place in [_descend(changed, head.split("."))] if place is not None and last in place]
        if not places:
            known = sorted({key for place in _places(changed) for key in place})
            near = get_close_matches(path, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)[:300]}"
            raise MoetoolError(f"--set {change!r}: the config has no {path}", hint)
        for place in places:
            place[path if path in place else last] = _value(value.strip())
    return changed


def _places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield from _places(value)


def _descend(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    place: Any = config
    for key in path:
        place = place.get(key) if isinstance(place, dict) else None
    return place if isinstance(place, dict) else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
