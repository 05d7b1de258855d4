"""What loading weights needs, in pieces or as a whole: a checkpoint enters, mapped tensors and a dtype leave."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.model.families import find

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
"""glibc's numbers of two options. Blocks above the first size come from the system, and go back when freed. The
second is how much freed memory it keeps at the end of its heap; setting the first stops it from raising this, and every
batch would fault its pages in anew."""


def prepare_libraries() -> None:
    """No progress bars and no advice from transformers (standard error is ours), no hoarding in oneDNN.

    Every expert of every batch gets another number of tokens, so code that oneDNN generated for a shape is hardly used
    again; the default of 1,024 kept primitives, there and in ideep above it, takes more memory than a layer.
    """
    from transformers.utils import logging

    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    _call_glibc("mallopt", _M_TRIM_THRESHOLD, 1 << 26)
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, 1 << 24)

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def compute_dtype(checkpoint: Checkpoint, wanted: str) -> str:
    """``wanted``, or for ``auto`` the type in which most bytes are stored; the config's where those are packed."""
    if wanted != "auto":
        if wanted not in DTYPES:
            raise MoetoolError(f"--dtype {wanted}: models do not compute in it", f"one of auto, {', '.join(DTYPES)}")
        return wanted
    stored: dict[str, int] = {}
    for tensor in checkpoint.tensors:
        stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.size_bytes
    most = max(stored, key=lambda name: stored[name]) if stored else "F32"
    declared = str(find(checkpoint.config, "dtype", "torch_dtype")).removeprefix("torch.")
    return STORED_DTYPES.get(most, declared if declared in DTYPES else "bfloat16")


class TensorFiles:
    """The stored tensors of a checkpoint, by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        folder = checkpoint.folder
        assert folder is not None
        self.paths = {tensor.name: folder / str(tensor.file) for tensor in checkpoint.tensors}
        self.open_files: dict[Path, Any] = {}

    def read(self, name: str) -> torch.Tensor:
        """A view into the mapped file: nothing is read before it is used."""
        from safetensors import safe_open

        path = self.paths[name]
        if path not in self.open_files:
            self.open_files[path] = safe_open(path, framework="pt")
        tensor: torch.Tensor = self.open_files[path].get_tensor(name)
        return tensor

    def close(self) -> None:
        """Unmap the files."""
        self.open_files.clear()


def return_free_memory() -> None:
    """Give freed memory back to the system: glibc would keep that of every released layer in its per-thread arenas."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(name: str, *arguments: Any) -> None:
    """Call a function of glibc; other C libraries have neither the function nor the problem."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)


def missing_tensors(names: list[str]) -> MoetoolError:
    """The error for weights that a checkpoint should have: a random weight would give random routing."""
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return MoetoolError(
        f"the checkpoint lacks {shown}{more}", "download it again: a shard may be missing or from another model"
    )


def mismatched_tensors(keys: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> MoetoolError:
    """The error for weights of other shapes: names, with the shape in the checkpoint and that of the model."""
    name, found, expected = sorted(keys)[0]
    return MoetoolError(f"{name} has shape {list(found)} in the checkpoint, not {list(expected)} as the config says")
