"""Reading a decoder's config strictly: a config enters, numbers and switches leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Flag = tuple[str, bool]
"""A config key that switches something on, and the default of transformers' config class."""
NEVER: Flag = ("", False)


class UnknownSizeError(Exception):
    """A config lacks a number that the model cannot be counted without, or holds something else in its place."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A decoder's config, read strictly: a missing or strange size raises UnknownSizeError, it is never guessed."""

    config: Mapping[str, Any]

    def size(self, *keys: str, zero: bool = False) -> int:
        """A number under one of several spellings of its key, which must agree; ``zero`` allows 0."""
        found = {self.config[key] for key in keys if type(self.config.get(key)) is int}
        if len(found) != 1 or any(key in self.config and type(self.config[key]) is not int for key in keys):
            raise UnknownSizeError(keys)
        size: int = found.pop()
        if size < (0 if zero else 1):
            raise UnknownSizeError(keys)
        return size

    def size_or(self, key: str, default: int) -> int:
        """A number that may be missing or null."""
        return default if self.config.get(key) is None else self.size(key, zero=True)

    def flag(self, flag: Flag) -> bool:
        """Whether a switch is on."""
        key, default = flag
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            raise UnknownSizeError(key)
        return value

    def kinds(self, key: str) -> Sequence[Any] | None:
        """A list with one entry per layer, or of layers; None where there is none."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, list | tuple):
            raise UnknownSizeError(key)
        return value

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.size("hidden_size")
