"""What tests of imports share: pickles that would act, and readers that note."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from moetool.capture.imports import reader_of
from moetool.capture.imports.recording import Known, Recording
from moetool.errors import MoetoolError


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def import_one(name: str, path: Path, **known: Any) -> tuple[Recording, list[str]]:
    """The recording of one source, and what was noted."""
    notes: list[str] = []
    return reader_of(name)(path, Known(**known), notes.append), notes


def refused(name: str, path: Path, **known: Any) -> str:
    """The message with which a source is refused."""
    with pytest.raises(MoetoolError) as caught:
        import_one(name, path, **known)
    return caught.value.message
