"""Two-way design, what a task does to routing apart from the domain: a trace with tasks enters, a TaskDesign leaves.

A task is compared with the others within the domains that have them all, every (domain, task) with the same tokens, and
labels are permuted within domains only: a domain's taste is the same on both sides and drops out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.capture.trace import RoutingTrace
from moetool.progress import Progress
from moetool.statistics.budget import level_tokens
from moetool.statistics.counts import GroupCounts, Units, count_groups

MOST_UNEVEN = 2


@dataclass(frozen=True, slots=True)
class TaskDesign:
    """What can be said of tasks apart from domains."""

    tasks: tuple[str, ...]
    crossed: tuple[str, ...]
    """Domains that have every task; empty where tasks and domains cannot be told apart."""
    counts: GroupCounts | None
    """Labels are tasks, strata are domains; None where nothing is crossed."""


def task_design(trace: RoutingTrace, keep: NDArray[np.bool_], seed: int, progress: Progress) -> TaskDesign | None:
    """Count the crossed part of a corpus by task; None where the corpus has fewer than two tasks.

    ``keep [T]`` are the counted tokens outside templates.
    """
    tasks = trace.tasks
    if len(tasks) < 2:
        return None
    present = {(document.domain, document.task) for document in trace.documents}
    crossed = tuple(domain for domain in trace.domains if all((domain, task) in present for task in tasks))
    if not crossed:
        return TaskDesign(tasks, crossed, None)
    inside = np.array([document.domain in crossed and document.task != "" for document in trace.documents])
    keep = keep & np.repeat(inside, [document.tokens for document in trace.documents])
    cells = [(domain, task) for domain in crossed for task in tasks]
    units = _units(trace, cells)
    rng = np.random.default_rng([seed, 6])
    keep = keep & np.repeat(_even(units, inside, rng), [document.tokens for document in trace.documents])
    kept, _, budget = level_tokens(trace, keep, units, rng)
    if not budget:
        return TaskDesign(tasks, crossed, None)
    counts = count_groups(trace, kept, progress, units)
    by_task = np.array([tasks.index(task) for _, task in cells])
    by_domain = np.array([crossed.index(domain) for domain, _ in cells])
    labelled = counts.relabel(tasks, by_task[counts.domain])
    return TaskDesign(tasks, crossed, labelled.within(by_domain[counts.domain]))


def _even(units: Units, inside: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Documents to keep: no (domain, task) has more than MOST_UNEVEN times the units of the smallest one.

    Permuted labels exchange few heavy units for many light ones, and would make p values too small.
    """
    real = np.unique(units.of_document[inside])
    sizes = np.bincount(units.label[real], minlength=len(units.labels))
    kept: list[NDArray[np.int64]] = []
    for cell in range(len(units.labels)):
        members = rng.permutation(real[units.label[real] == cell])
        kept.append(members[: MOST_UNEVEN * int(sizes.min())])
    chosen: NDArray[np.bool_] = np.isin(units.of_document, np.concatenate(kept)) & inside
    return chosen


def _units(trace: RoutingTrace, cells: list[tuple[str, str]]) -> Units:
    """A unit is a group within one domain and task; documents outside the cells share a unit that is never kept."""
    keys = [
        (document.domain, document.task, document.group) if (document.domain, document.task) in cells else ()
        for document in trace.documents
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    label = [cells.index((key[0], key[1])) if key else 0 for key in numbers]
    names = tuple(f"{domain}, {task}" for domain, task in cells)
    return Units(np.array([numbers[key] for key in keys]), np.array(label), names)
