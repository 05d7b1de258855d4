"""Which experts prefer which domain, and how sure that is: enters as a RoutingTrace, leaves as a Specialization.

The protocol: equal tokens per domain (``budget``), found on half of the groups and measured on the other half
(``significance``, ``intervals``), information per layer against permuted labels (``information``), held-out
classification (``classification``), and all of it once more on random halves of single domains, where there is
nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.errors import MoetoolError
from moetool.progress import Progress
from moetool.statistics.budget import Sample, sample_tokens
from moetool.statistics.classification import Classification, classify_groups
from moetool.statistics.counts import GroupCounts, count_groups, lifts, token_shares
from moetool.statistics.divergence import Committees, Divergences, domain_divergences, standing_committees
from moetool.statistics.document_map import DocumentMap, map_documents
from moetool.statistics.independence import neighbour_p_values
from moetool.statistics.information import Information, domain_information, excess_intervals, mutual_information
from moetool.statistics.intervals import lift_intervals
from moetool.statistics.kinds import Kind, find_kinds
from moetool.statistics.significance import PreferenceTests, preference_tests
from moetool.statistics.tasks import TaskDesign, task_design
from moetool.statistics.token_text import TokenText, kept_tokens, study_text
from moetool.statistics.translations import Translations, find_translations

MINIMUM_GROUPS = 8
"""Groups that every domain needs before anything is tested."""
FALSE_DISCOVERY_RATE = 0.05
LISTED_EXPERTS = 5
"""Specialists of each domain whose tokens are listed."""
CONTROL_SPLITS = 2
"""Random splits of each domain in the A/A control."""
CONTROL_PERMUTATIONS = 200
"""For its information, of which only the mean of the null is used."""


@dataclass(frozen=True, slots=True)
class Specialists:
    """Preferences found on one half of the groups and seen again on the other, strongest first.

    The rule: q < 0.05 on the discovery half, one-sided for a lift above 1, and a 95 % interval above 1 on the
    confirmation half. Where nothing is there, the first step errs at most once in twenty corpora and the second about
    once in forty.
    """

    cell: NDArray[np.int64]
    """``[N]``"""
    domain: NDArray[np.int64]
    """``[N]``"""
    lift: NDArray[np.float64]
    """``[N]`` on the confirmation half, as are its interval and the token share."""
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    token_share: NDArray[np.float64]
    tests: PreferenceTests
    """On the discovery half."""
    candidates: int
    """Preferences with q < 0.05 on the discovery half."""
    confirmation: NDArray[np.int64]
    """Indices of the groups of the other half."""


@dataclass(frozen=True, slots=True)
class LayerInformation:
    """Information about the domain per layer, with the interval of its excess."""

    information: Information
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Control:
    """A/A control: the same analysis on random splits of one domain into two pretended domains."""

    runs: int
    specialists: int
    """Found in all runs together."""
    excess_information_bits: float
    """Mean over runs and layers."""
    accuracy: float
    """Mean over runs; chance is 1/2."""


@dataclass(frozen=True, slots=True)
class Specialization:
    """All that a report on specialization says; None where a domain has too few groups to test."""

    counts: GroupCounts
    sample: Sample
    shares: NDArray[np.float64]
    """``[D, C]`` token share q_{e,D} over all groups."""
    lifts: NDArray[np.float64]
    """``[D, C]`` over all groups."""
    observed_bits: NDArray[np.float64]
    """``[L]`` information before what chance gives is taken off."""
    classification: Classification | None
    specialists: Specialists | None
    layers: LayerInformation | None
    control: Control | None
    neighbour_p_value: NDArray[np.float64]
    """``[D]`` see ``independence``."""
    kinds: list[Kind] | None
    """Of each specialist; None where no text of tokens is known."""
    tasks: TaskDesign | None
    """None for a corpus without tasks."""
    task_specialists: Specialists | None
    """Preferences for a task, within domains."""
    text: TokenText | None
    """None as ``kinds``."""
    translations: Translations
    """Domains that are taken as the same texts in two languages."""
    divergences: Divergences
    committees: Committees
    document_map: DocumentMap


def analyse(trace: RoutingTrace, seed: int, permutations: int, bootstraps: int, progress: Progress) -> Specialization:
    """Compare the domains of a trace; the same seed gives the same result.

    Raises MoetoolError for fewer than two domains, a domain without tokens, and settings out of range.
    """
    for name, value in (("permutations", permutations), ("bootstraps", bootstraps)):
        if value < 100:
            raise MoetoolError(f"{name} is {value}; fewer than 100 resolve nothing", f"leave {name} at its default")
    sample = sample_tokens(trace, seed)
    counts = count_groups(trace, sample.keep, progress)
    shares = token_shares(counts, counts.members())
    testable = bool(counts.groups_of_domain().min() >= MINIMUM_GROUPS)
    specialists = layers = None
    if testable:
        with progress.step("Permuting domain labels", 2) as advance:
            specialists = find_specialists(counts, permutations, bootstraps, np.random.default_rng([seed, 2]))
            advance(1)
            layers = layer_information(counts, permutations, bootstraps, np.random.default_rng([seed, 3]))
            advance(1)
    kinds = text = None
    translations: Translations = {}
    tokens = kept_tokens(trace, sample.keep, counts) if specialists is not None else None
    if specialists is not None and tokens is not None:
        found = specialists
        with progress.step("Reading tokens", 2) as advance:
            translations = find_translations(trace, tokens, counts, np.random.default_rng([seed, 11]))
            cells = (found.domain, found.cell, found.lift)
            kinds = find_kinds(trace, tokens, counts, found.confirmation, *cells, translations)
            advance(1)
            halves, listed = _halves(counts, found), _surest_experts(counts, found)
            rng = np.random.default_rng([seed, 8])
            text = study_text(trace, tokens, halves, listed, FALSE_DISCOVERY_RATE, permutations, rng)
            advance(1)
    tasks = task_design(trace, sample.text, seed, progress)
    return Specialization(
        counts,
        sample,
        shares,
        lifts(shares),
        layers.information.observed_bits if layers else mutual_information(counts, counts.members()[:, None, :])[0],
        classify_groups(counts),
        specialists,
        layers,
        run_control(counts, seed, permutations, bootstraps, progress) if testable else None,
        neighbour_p_values(counts, np.random.default_rng([seed, 4])),
        kinds,
        tasks,
        find_task_specialists(tasks, permutations, bootstraps, np.random.default_rng([seed, 7])),
        text,
        translations,
        domain_divergences(counts, np.random.default_rng([seed, 9])),
        standing_committees(counts),
        map_documents(counts),
    )


def _halves(counts: GroupCounts, found: Specialists) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The groups that found the specialists, and those that confirmed them."""
    return np.setdiff1d(np.arange(len(counts.domain)), found.confirmation), found.confirmation


def _surest_experts(counts: GroupCounts, found: Specialists) -> list[tuple[int, int]]:
    """Layer index and expert of the surest specialists of every domain, whose tokens are listed."""
    surest = [found.cell[found.domain == index][:LISTED_EXPERTS] for index in range(len(counts.domains))]
    cells = np.unique(np.concatenate(surest))
    place = np.searchsorted(counts.starts, cells, side="right") - 1
    return list(zip(place.tolist(), (cells - counts.starts[place]).tolist(), strict=True))


def split_groups(
    domain: NDArray[np.int64], domains: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two random halves of the groups, each domain halved; odd groups go to the first and second half by turns."""
    halves: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    odd = 0
    for index in range(domains):
        members = rng.permutation(np.flatnonzero(domain == index))
        middle = (len(members) + 1 - odd % 2) // 2
        odd += len(members) % 2
        halves[0].append(members[:middle])
        halves[1].append(members[middle:])
    return np.sort(np.concatenate(halves[0])), np.sort(np.concatenate(halves[1]))


def find_specialists(counts: GroupCounts, permutations: int, bootstraps: int, rng: np.random.Generator) -> Specialists:
    """Find preferences on half of the groups and keep those that the other half confirms."""
    cell_of_group = counts.domain if counts.stratum is None else counts.domain + len(counts.domains) * counts.stratum
    discovery, confirmation = split_groups(cell_of_group, int(cell_of_group.max()) + 1, rng)
    tests = preference_tests(counts.select(discovery), permutations, rng)
    domain, cell = np.nonzero(tests.q_value < FALSE_DISCOVERY_RATE)
    held_out = counts.select(confirmation)
    low, high = lift_intervals(held_out, domain, cell, bootstraps, rng)
    order = np.argsort(-low, kind="stable")
    order = order[low[order] > 1]
    domain, cell, candidates = domain[order], cell[order], len(low)
    shares = token_shares(held_out, held_out.members())
    lift = lifts(shares)[domain, cell]
    # Near the largest lift that there is, the number of domains, resamples spread to one side only.
    low, high = np.minimum(low[order], lift), np.maximum(high[order], lift)
    return Specialists(cell, domain, lift, low, high, shares[domain, cell], tests, candidates, confirmation)


def find_task_specialists(
    design: TaskDesign | None, permutations: int, bootstraps: int, rng: np.random.Generator
) -> Specialists | None:
    """Preferences for a task within domains; None where too few groups have every task.

    Domains are halved one by one, so every task needs half of the minimum in any half: one group less per odd domain.
    """
    if design is None or design.counts is None:
        return None
    if design.counts.groups_of_domain().min() - len(design.crossed) < MINIMUM_GROUPS:
        return None
    return find_specialists(design.counts, permutations, bootstraps, rng)


def layer_information(
    counts: GroupCounts, permutations: int, bootstraps: int, rng: np.random.Generator
) -> LayerInformation:
    """Information per layer with its null and the interval of its excess."""
    information = domain_information(counts, permutations, rng)
    return LayerInformation(information, *excess_intervals(counts, information.excess_bits, bootstraps, rng))


def run_control(
    counts: GroupCounts, seed: int, permutations: int, bootstraps: int, progress: Progress
) -> Control | None:
    """Repeat the analysis on random splits of every domain with enough groups; None where there is no such domain."""
    sizes = counts.groups_of_domain()
    large = np.flatnonzero(sizes >= 2 * MINIMUM_GROUPS)
    if not large.size:
        return None
    found, excess, accuracy = 0, [], []
    with progress.step("A/A control", len(large) * CONTROL_SPLITS) as advance:
        for index in large:
            members = counts.select(np.flatnonzero(counts.domain == index))
            for split in range(CONTROL_SPLITS):
                rng = np.random.default_rng([seed, 5, int(index), split])
                pretended = members.relabel(("first", "second"), rng.permutation(np.arange(sizes[index]) % 2))
                found += len(find_specialists(pretended, permutations, bootstraps, rng).cell)
                information = domain_information(pretended, min(permutations, CONTROL_PERMUTATIONS), rng)
                excess.append(information.excess_bits.mean())
                outcome = classify_groups(pretended)
                assert outcome is not None
                accuracy.append(outcome.accuracy)
                advance(1)
    return Control(len(accuracy), found, float(np.mean(excess)), float(np.mean(accuracy)))
