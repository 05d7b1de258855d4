"""How far the routing of two domains lies apart, and which experts serve all of them: enters as GroupCounts, leaves as
divergences beside their A/A value and as committees.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from moetool.errors import MoetoolError
from moetool.statistics.counts import GroupCounts, token_shares
from moetool.statistics.information import mutual_information

MOST_DOMAINS = 32
"""Of more domains there are too many pairs to look at, and none is compared."""
HALVINGS = 20
"""Random halvings of the groups that an A/A value is the mean of."""


@dataclass(frozen=True, slots=True)
class Divergences:
    """Jensen-Shannon divergences of slot shares, for P pairs of domains; all in bits, at most 1.

    A divergence of two samples is above 0 even where nothing differs, the more so the fewer groups there are. So what
    is compared with an A/A value is not the divergence of whole domains, but that of halves, drawn in the same way and
    of as many groups each: where the groups of both domains route alike, both have the same expectation.
    """

    pairs: tuple[tuple[int, int], ...]
    """``[P]`` indices of the two domains."""
    observed_bits: NDArray[np.float64]
    """``[P, L]`` of the two domains, with all their groups."""
    between_bits: NDArray[np.float64]
    """``[P, L]`` of a half of one domain and a half of the other, mean over halvings; NaN below two groups."""
    within_bits: NDArray[np.float64]
    """``[P, L]`` A/A value: of two halves of one domain, mean over both domains and the same halvings; NaN as above."""
    groups_per_half: NDArray[np.int64]
    """``[P]`` half the groups of the smaller domain; of the larger one each halving takes as many at random."""

    @property
    def excess_bits(self) -> NDArray[np.float64]:
        """``[P, L]`` between minus within: 0 on average where the domains route alike, so it may be below 0."""
        return self.between_bits - self.within_bits


@dataclass(frozen=True, slots=True)
class Committees:
    """Experts of each layer that are among the most used ones of every domain."""

    size: NDArray[np.int64]
    """``[L]`` m: how many of a domain's experts count as its most used."""
    experts: tuple[NDArray[np.int64], ...]
    """``[L]`` the experts in the top m of all domains, in rising order."""
    coverage: NDArray[np.float64]
    """``[L]`` share of all slots that these experts take, domains weighted equally."""
    expected_experts: NDArray[np.float64]
    """``[L]`` how many there would be by chance, E (m/E)^D: the exact mean if every domain ranked the experts at random
    and independently of the others, so that each expert is in a domain's top m with probability m/E. Domains of one
    model do not: a load that is unequal in the same way for all of them is enough for a committee."""


def domain_divergences(counts: GroupCounts, rng: np.random.Generator) -> Divergences:
    """Compare every pair of domains with halves of themselves.

    The divergence is the entropy of the mean of two distributions minus the mean of their entropies (Lin, IEEE
    Transactions on Information Theory 37, 1991), which is the mutual information of expert and domain.
    """
    members = counts.members()
    groups = [np.flatnonzero(row) for row in members]
    pairs = tuple(combinations(range(len(groups)), 2)) if len(groups) <= MOST_DOMAINS else ()
    observed, between, within = np.full((3, len(pairs), len(counts.layers)), np.nan)
    half = np.array([min(len(groups[first]), len(groups[second])) // 2 for first, second in pairs], dtype=np.int64)
    for i, (first, second) in enumerate(pairs):
        observed[i] = mutual_information(counts, members[[first, second], None])[0]
        if half[i]:
            one, other = (_halves(groups[domain], int(half[i]), len(counts.domain), rng) for domain in pairs[i])
            between[i] = _mean_divergence(counts, (one[0], other[0]), (one[1], other[1]))
            within[i] = _mean_divergence(counts, (one[0], one[1]), (other[0], other[1]))
    return Divergences(pairs, observed, between, within, half)


def _halves(
    members: NDArray[np.int64], half: int, groups: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two ``[R, G]`` memberships: in each row, two disjoint sets of ``half`` members."""
    drawn = rng.permuted(np.tile(members, (HALVINGS, 1)), axis=1)
    halves = np.zeros((2, HALVINGS, groups), dtype=np.float32)
    rows = np.arange(HALVINGS)[:, None]
    halves[0][rows, drawn[:, :half]] = 1
    halves[1][rows, drawn[:, half : 2 * half]] = 1
    return halves[0], halves[1]


def _mean_divergence(
    counts: GroupCounts, *pairs: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> NDArray[np.float64]:
    """``[L]`` mean over pairs of memberships ``[R, G]`` and over their rows."""
    divergences = [mutual_information(counts, np.stack(pair)).mean(axis=0) for pair in pairs]
    return np.asarray(np.mean(divergences, axis=0))


def standing_committees(counts: GroupCounts, size: int | None = None) -> Committees:
    """Find the experts in the top ``size`` of every domain, K of each layer by default.

    Of experts that are used alike the lower numbers come first; one that a domain never used is not in its top.
    Raises MoetoolError where a layer has fewer experts than ``size``.
    """
    experts = np.array([layer.experts for layer in counts.layers])
    if size is not None and not 1 <= size <= experts.min():
        raise MoetoolError(f"a committee of the top {size} experts is asked for", f"name 1 to {experts.min()}")
    sizes = np.array([size or layer.experts_per_token for layer in counts.layers], dtype=np.int64)
    shares = token_shares(counts, counts.members()) / counts.experts_per_token
    found = tuple(
        _in_every_top(shares[:, layer.cells], int(top)) for layer, top in zip(counts.layers, sizes, strict=True)
    )
    coverage = [
        shares[:, layer.cells][:, members].sum(axis=1).mean()
        for layer, members in zip(counts.layers, found, strict=True)
    ]
    return Committees(sizes, found, np.array(coverage), experts * (sizes / experts) ** len(counts.domains))


def _in_every_top(shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    top = np.argsort(-shares, axis=1, kind="stable")[:, :size]
    in_top = np.zeros(shares.shape, dtype=bool)
    np.put_along_axis(in_top, top, True, axis=1)
    return np.flatnonzero((in_top & (shares > 0)).all(axis=0))
