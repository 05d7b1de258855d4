"""What the sections of ``moetool memory`` share: the model that they describe enters each, a Section leaves each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moetool.accounting.kv_cache import CacheOptions
from moetool.accounting.ledger import Ledger
from moetool.checkpoint.types import Checkpoint
from moetool.model.facts import ModelFacts
from moetool.model.inventory import Inventory
from moetool.report.report import Column, Figure, Finding, Table, Value

PARAMETERS = Column("parameters", "Parameters", "parameters")
BYTES = Column("bytes", "Bytes", "bytes")
SHARE = Column("share", "Share of bytes", "share")


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What the user asked for; defaults are those of the command line."""

    context: int | None = None
    """Tokens; None for the model's longest, at most ``LONGEST_DEFAULT``."""
    batch: int = 1
    kv_dtype: str = "auto"
    kv_policy: str = "exact"
    gpus: int | None = None
    tp: int | None = None
    pp: int = 1
    dp: int = 1
    ep: int = 1
    redundant_experts: int = 0
    gpu_memory: str | None = None
    training: str | None = None
    traces: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    """``key=value`` for the config."""
    compare: str | None = None
    by: tuple[str, ...] = ()
    """Breakdowns that the text shows; the usual ones where empty."""
    check_config: bool = False
    """Also count the config with transformers where no quicker way is known."""

    def shows(self, breakdown: str) -> bool:
        """Whether the text has this breakdown."""
        return breakdown in (self.by or ("component", "layer", "dtype"))


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and all that is known of it before a section starts."""

    checkpoint: Checkpoint
    inventory: Inventory
    facts: ModelFacts
    ledger: Ledger
    cache: CacheOptions
    settings: MemorySettings


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    summary: Mapping[str, Value]
    """Values of exactly the section's own columns."""
    tables: tuple[Table, ...] = ()
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figure, ...] = ()
    assumptions: tuple[tuple[str, str, str], ...] = ()
    """Name, value, and where it comes from."""
