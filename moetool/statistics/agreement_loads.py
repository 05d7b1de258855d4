"""Whether loads moved between two models: tokens by group and expert enter, shifts beyond chance and p values leave.

Tokens that change experts move loads a little, even where no expert gains on the whole, and the fewer change the larger
a share of the changes that is. The null: A and B trade places, group of documents by group. What group g moved to
expert e, d_ge = n'_ge - n_ge, then has either sign by the toss of one coin per group, the same for all experts and
layers, so that their correlations stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from moetool.statistics.across import ENOUGH_GROUPS
from moetool.statistics.significance import chunk_rows

Floats = NDArray[np.float64]

FLIPS = 999
"""Tosses of all coins beside the one that is observed; the smallest p value is 1 / (1 + FLIPS)."""
_FEW_GROUPS = 10
"""So many or fewer are given every sign that they can have, up to a common one."""
SIGNIFICANT = 0.05
"""Chance that one expert or more of all is called moved where none did."""
_ROUNDING = 1e-9
"""Equal statistics may differ in their last bits."""


@dataclass(frozen=True, slots=True)
class LoadShift:
    """How far the loads of one layer moved; ``R`` tosses."""

    moved: float
    """sum_e |n'_e - n_e| / 2 over TK: the disagreement that these loads force."""
    changed: float
    """The disagreement: choices of A that B did not make, over TK."""
    moved_null: float
    """The mean of ``moved`` over the tosses and what is observed, which is one of them."""
    statistic: Floats
    """``[E]`` |sum_g d_ge| / sqrt(sum_g d_ge^2), the size of an expert's shift in units of its groups'."""
    largest_null: Floats
    """``[R]`` the largest statistic of a toss."""


def load_shift(loads: Floats, choices: float, shared: float) -> LoadShift | None:
    """The shift of ``loads [2, G, E]``, tokens by group and expert of A and of B, against tosses.

    ``choices`` is TK, and ``shared`` how many of them both made. None below ENOUGH_GROUPS groups.
    """
    moved = loads[1] - loads[0]
    if len(moved) < ENOUGH_GROUPS:
        return None
    scale = np.sqrt((moved**2).sum(axis=0))
    scale[scale == 0] = np.inf  # a load that no group moved
    sizes, largest = [], []
    for signs in _tosses(len(moved)):
        sums = np.abs(signs @ moved)
        sizes.append(sums.sum(axis=1))
        largest.append((sums / scale).max(axis=1))
    observed = np.abs(moved.sum(axis=0))
    sizes.append(observed.sum(keepdims=True))
    return LoadShift(
        float(observed.sum() / 2 / choices),
        1 - shared / choices,
        float(np.concatenate(sizes).mean() / 2 / choices),
        observed / scale,
        np.concatenate(largest),
    )


def _tosses(groups: int) -> Iterator[Floats]:
    """Chunks ``[R', G]`` of signs, the same in every layer, without those that are observed."""
    if groups <= _FEW_GROUPS:
        yield np.array(list(product((-1.0, 1.0), repeat=groups)))[2 ** (groups - 1) : -1]
        return
    random, rows = np.random.default_rng(0), chunk_rows(groups)
    for start in range(0, FLIPS, rows):
        yield random.choice([-1.0, 1.0], (min(rows, FLIPS - start), groups))


def excess_shift(shifts: Sequence[LoadShift | None]) -> float:
    """Share of the disagreement, in the mean over layers, that loads force beyond the null: 0 by chance.

    Less than the truth where loads did move, by about sqrt(2 / (pi G)) of it: what all G groups share is in the null
    too. NaN where nothing changed, or the groups are too few.
    """
    known = [shift for shift in shifts if shift is not None]
    changed = sum(shift.changed for shift in known)
    return sum(shift.moved - shift.moved_null for shift in known) / changed if changed else float("nan")


def shift_p_values(shifts: Sequence[LoadShift | None]) -> list[Floats | None]:
    """``[E]`` for each layer: the share of tosses in which any expert of any layer moved as far.

    So SIGNIFICANT holds for all experts together (Westfall and Young, Resampling-Based Multiple Testing, 1993, 2.3).
    None for layers without a shift.
    """
    known = [shift.largest_null for shift in shifts if shift is not None]
    null = np.sort(np.max(known, axis=0)) if known else np.empty(0)

    def p_values(shift: LoadShift) -> Floats:
        below = np.searchsorted(null, shift.statistic - _ROUNDING)
        return np.asarray((1 + len(null) - below) / (1 + len(null)))

    return [None if shift is None else p_values(shift) for shift in shifts]
