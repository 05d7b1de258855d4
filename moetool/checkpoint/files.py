"""Files of a checkpoint: enters a path, leaves a stream of a regular file, the only kind that is read."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; OSError also for a folder, a pipe or a device, which could be read or waited for without
    end."""
    if not S_ISREG(path.stat().st_mode):
        raise OSError(EINVAL, "it is no regular file")
    return path.open("rb")
