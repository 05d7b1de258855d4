"""What a checkpoint is: its config and the tensors that its headers name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class TensorInfo(NamedTuple):
    """One stored tensor, as its header describes it; a tuple, because 90,000 of them are made three times as fast."""

    name: str
    dtype: str
    """The header's own name of the type: ``BF16``, ``F8_E4M3``, ``U8``, ..."""
    shape: tuple[int, ...]
    size_bytes: int
    """Stored bytes: the distance of the header's two offsets."""
    file: str | None
    """File name inside the checkpoint folder; None for a tensor that is only planned (meta device)."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A located model: what it is called, its config, and its tensors where there are any."""

    name: str
    """As the user named it: ``demo``, a folder, a file or a hub id."""
    revision: str | None
    """Commit hash of a hub checkpoint; None for local ones."""
    config: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    """Empty where only a config is known."""
    folder: Path | None
    """Local folder that holds the files; None where only a config or remote headers were read."""

    @property
    def config_sha256(self) -> str:
        """Of the config as JSON with sorted keys."""
        text = json.dumps(self.config, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
