"""Work on several layers at once: items enter one by one, results leave in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORKERS = 2
"""Threads, and so layers in memory: numpy lets go of the interpreter while it works on large arrays."""


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``function`` of every item, WORKERS at a time; no item is taken before there is a worker for it."""
    with ThreadPoolExecutor(WORKERS) as pool:
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            del item
            if len(running) >= WORKERS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
