"""Sizes as people write them: ``80GiB``, ``80 GB`` or ``80e9`` enters, bytes leave."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40},
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{0,9})?(?:[eE]\+?\d{1,2})?)\s*([A-Za-z]*)", re.ASCII)


def parse_size(text: str) -> int | None:
    """Bytes of a size with or without a unit (GB are 10^9 bytes, GiB 2^30); None for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2].lower() not in _UNITS:
        return None
    return int(Fraction(match[1]) * _UNITS[match[2].lower()])
