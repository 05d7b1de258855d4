"""How long steps tell that they move: a protocol that the command line implements with rich, and a silent one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told by anything that may take longer than a second."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """A step of ``total`` units; the returned function advances it by a number of units."""

    def note(self, message: str) -> None:
        """A sentence for people, on standard error unless they asked for quiet."""


class SilentProgress:
    """Says nothing: for Python callers and tests."""

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Advance nothing."""
        yield lambda amount: None

    def note(self, message: str) -> None:
        """Drop the message."""
