"""Routing counts of independent groups: enters as a RoutingTrace and the tokens to count, leaves as GroupCounts.

Shapes beside the legend of ``capture/trace.py``: ``C`` cells, every expert of every MoE layer, layer after layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.progress import Progress

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class LayerCells:
    """Where the experts of one MoE layer lie on the axis of cells."""

    layer: int
    """Decoder layer number."""
    start: int
    experts: int
    experts_per_token: int

    @property
    def cells(self) -> slice:
        """The layer's part of the axis ``C``."""
        return slice(self.start, self.start + self.experts)


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """How often each group of documents chose each expert: all that tests between domains need of a trace."""

    domains: tuple[str, ...]
    """``[D]`` names."""
    names: tuple[str, ...]
    """``[G]`` names of the groups."""
    domain: NDArray[np.int64]
    """``[G]`` domain of each group."""
    documents: NDArray[np.int64]
    """``[G]`` documents with a counted token."""
    tokens: NDArray[np.float32]
    """``[G]`` counted tokens, at least one."""
    hits: NDArray[np.float32]
    """``[G, C]`` counted tokens that chose the expert."""
    layers: tuple[LayerCells, ...]
    stratum: NDArray[np.int64] | None = None
    """``[G]`` labels are permuted within strata only; None where there is one."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """``[L]`` first cell of each layer."""
        return np.array([layer.start for layer in self.layers], dtype=np.int64)

    @property
    def experts_per_token(self) -> NDArray[np.float32]:
        """``[C]`` K of the layer of each cell."""
        return np.repeat(
            np.array([layer.experts_per_token for layer in self.layers], dtype=np.float32),
            [layer.experts for layer in self.layers],
        )

    def groups_of_domain(self) -> NDArray[np.int64]:
        """``[D]`` number of groups."""
        return np.bincount(self.domain, minlength=len(self.domains))

    def members(self) -> NDArray[np.float32]:
        """``[D, G]`` 1 where the group belongs to the domain."""
        return np.asarray(self.domain == np.arange(len(self.domains))[:, None], dtype=np.float32)

    def select(self, groups: NDArray[np.int64]) -> GroupCounts:
        """The same counts of some groups, given by index."""
        return replace(
            self,
            names=tuple(self.names[group] for group in groups),
            domain=self.domain[groups],
            documents=self.documents[groups],
            tokens=self.tokens[groups],
            hits=self.hits[groups],
            stratum=None if self.stratum is None else self.stratum[groups],
        )

    def relabel(self, domains: tuple[str, ...], domain: NDArray[np.int64]) -> GroupCounts:
        """The same groups under other domains."""
        return replace(self, domains=domains, domain=domain)

    def within(self, stratum: NDArray[np.int64]) -> GroupCounts:
        """The same, with labels that are permuted within strata only."""
        return replace(self, stratum=stratum)


@dataclass(frozen=True, slots=True)
class Units:
    """The independent units of an analysis and the labels that it compares."""

    of_document: NDArray[np.int64]
    """Index of the unit of every document of a trace."""
    label: NDArray[np.int64]
    """``[U]`` label of each unit."""
    labels: tuple[str, ...]
    stratum: NDArray[np.int64] | None = None
    """``[U]``, see GroupCounts."""


def domain_units(trace: RoutingTrace) -> Units:
    """Groups of documents, compared by domain."""
    of_document = trace.group_of_document().astype(np.int64)
    label = np.zeros(of_document.max() + 1, dtype=np.int64)
    label[of_document] = trace.domain_of_document()
    return Units(of_document, label, trace.domains)


def count_groups(
    trace: RoutingTrace, keep: NDArray[np.bool_], progress: Progress, units: Units | None = None
) -> GroupCounts:
    """Count the tokens with ``keep [T]`` by unit (group and domain unless given) and expert, reading each layer once.

    Units without such a token are left out.
    """
    units = units or domain_units(trace)
    position, group, present = kept_groups(trace, keep, units.of_document)
    cells: list[LayerCells] = []
    hits = []
    with progress.step("Counting routing choices", len(trace.layers)) as advance:
        for layer in trace.layers:
            start = cells[-1].start + cells[-1].experts if cells else 0
            cells.append(LayerCells(layer.layer, start, layer.experts, layer.experts_per_token))
            cell = layer.chosen[position].astype(np.int64) + (group * layer.experts)[:, None]
            count = np.bincount(cell.ravel(), minlength=len(present) * layer.experts)
            hits.append(count.reshape(len(present), layer.experts).astype(np.float32))
            advance(1)
    used = np.bincount(trace.document_of_token()[keep], minlength=len(trace.documents)) > 0
    first = np.unique(units.of_document, return_index=True)[1][present]
    return GroupCounts(
        units.labels,
        tuple(trace.documents[index].group for index in first),
        units.label[present],
        np.bincount(units.of_document[used], minlength=present.max(initial=-1) + 1)[present],
        np.bincount(group, minlength=len(present)).astype(np.float32),
        np.concatenate(hits, axis=1),
        tuple(cells),
        None if units.stratum is None else units.stratum[present],
    )


def kept_groups(
    trace: RoutingTrace, keep: NDArray[np.bool_], of_document: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Position ``[N]`` and unit ``[N]`` of the kept tokens, units numbered as in GroupCounts, and which these are."""
    every_token = np.repeat(of_document, [document.tokens for document in trace.documents])[keep]
    present, group = np.unique(every_token, return_inverse=True)
    return np.flatnonzero(keep), group, present


def token_shares(counts: GroupCounts, weights: Floats) -> NDArray[np.float64]:
    """``[R, C]`` token share q_e of each row of group weights ``[R, G]`` (rows of ``members()`` give q_{e,D})."""
    rows = np.asarray(weights, dtype=np.float64)
    tokens = rows @ counts.tokens.astype(np.float64)
    return np.asarray((rows @ counts.hits.astype(np.float64)) / tokens[:, None])


def lifts(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[D, C]`` token share of a domain over the mean of all domains, weighted equally; NaN where there is none.

    The share over its uniform baseline K/E is domain specialization, OLMoE (arXiv 2409.02060) eq. 7.
    """
    mean = shares.mean(axis=0)
    result = np.full_like(shares, np.nan)
    np.divide(shares, mean, out=result, where=mean > 0)
    return result
