"""From a checkpoint to a transformers model: an empty one on the meta device, and its weights piece by piece.

transformers' own key conversion is used for every piece, so each layout that it can load (one tensor per expert, fused,
renamed) loads here in the same way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PACKED_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "I8", "U8"})
"""Stored types that mean nothing without scales."""

_M_MMAP_THRESHOLD = -3
"""glibc's number of the option: blocks above this size come from the system and go back to it when they are freed."""


_MADV_WILLNEED = 3


def prepare_libraries() -> None:
    """No progress bars and no advice from transformers (standard error is ours), no hoarding in oneDNN.

    Every expert of every batch gets another number of tokens, so code that oneDNN generated for a shape is hardly used
    again; its default of 1,024 kept primitives takes more memory than a layer.
    """
    from transformers.utils import logging

    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    _call_glibc("mallopt", _M_MMAP_THRESHOLD, 1 << 24)

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def compute_dtype(checkpoint: Checkpoint, wanted: str) -> str:
    """``wanted``, or for ``auto`` the type in which most bytes are stored (float32 where that is no plain float)."""
    if wanted != "auto":
        if wanted not in DTYPES:
            raise MoetoolError(f"--dtype {wanted}: models do not compute in it", f"one of auto, {', '.join(DTYPES)}")
        return wanted
    stored: dict[str, int] = {}
    for tensor in checkpoint.tensors:
        stored[tensor.dtype] = stored.get(tensor.dtype, 0) + tensor.size_bytes
    most = max(stored, key=lambda name: stored[name]) if stored else "F32"
    return STORED_DTYPES.get(most, "bfloat16")


class PieceLoader:
    """Loads the weights under one module path at a time into a model on the meta device, and releases them again."""

    def __init__(self, model: Any, checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        self.model, self.device, self.dtype = model, device, DTYPES[dtype]
        self.mapping = get_model_conversion_mapping(model)
        renamings = [entry for entry in self.mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.mapping if isinstance(entry, WeightConverter)]
        state = model.state_dict()
        folder = checkpoint.folder
        assert folder is not None
        self.files = {tensor.name: folder / str(tensor.file) for tensor in checkpoint.tensors}
        self.target: dict[str, str] = {}
        for name in self.files:
            renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            if renamed not in state and name in state:
                renamed = name
            self.target[name] = renamed
        self.open_files: dict[Path, Any] = {}

    def load(self, prefix: str, without: Iterable[str] = ()) -> None:
        """Fill every parameter and buffer of the module at ``prefix``, leaving out the given sub-paths.

        Raises MoetoolError where the checkpoint lacks a tensor or has it in another shape.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        skipped = tuple(without)
        names = self._names(prefix, skipped)
        load_config = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=self.model._get_dtype_plan(self.dtype),
            device_map={"": self.device},
            weight_mapping=self.mapping,  # type: ignore[arg-type]
        )
        result = convert_and_load_state_dict_in_model(
            self.model, {name: self._tensor(name) for name in names}, load_config, None
        )
        info = result[0] if isinstance(result, tuple) else result
        if info.mismatched_keys:
            name, found, expected = sorted(info.mismatched_keys)[0]
            raise MoetoolError(
                f"{name} has shape {list(found)} in the checkpoint, not {list(expected)} as the config says"
            )
        if info.conversion_errors:
            raise MoetoolError(f"tensors could not be converted: {sorted(info.conversion_errors)[0]}")
        self._make_buffers(prefix, skipped)
        self._check_complete(prefix, skipped)

    def read_ahead(self, prefix: str) -> None:
        """Ask the system to read the pages of the module at ``prefix`` now, without waiting and without memory."""
        for tensor in map(self._tensor, self._names(prefix, ())):
            start = tensor.data_ptr() & -mmap.PAGESIZE  # a page begins at a multiple of its size
            length = tensor.data_ptr() + tensor.nbytes - start
            _call_glibc("madvise", ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_WILLNEED)

    def _names(self, prefix: str, skipped: tuple[str, ...]) -> list[str]:
        return [
            name for name, target in self.target.items() if _under(target, prefix) and not _under_any(target, skipped)
        ]

    def _tensor(self, name: str) -> torch.Tensor:
        """A view into the mapped file: nothing is read before it is used."""
        from safetensors import safe_open

        file = self.files[name]
        if file not in self.open_files:
            self.open_files[file] = safe_open(file, framework="pt")
        tensor: torch.Tensor = self.open_files[file].get_tensor(name)
        return tensor

    def _make_buffers(self, prefix: str, skipped: tuple[str, ...]) -> None:
        """Compute the buffers that no checkpoint stores (rotary frequencies), by the model's own rule."""
        for path, module in self.model.named_modules():
            names = module._non_persistent_buffers_set
            if not names or not _under(path + ".", prefix) or _under_any(path + ".", skipped):
                continue
            for name in names:
                if module._buffers.get(name) is not None:
                    module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            self._nearest_model(path)._init_weights(module)

    def _nearest_model(self, path: str) -> Any:
        from transformers import PreTrainedModel

        while path:
            path = path.rpartition(".")[0]
            module = self.model.get_submodule(path)
            if isinstance(module, PreTrainedModel):
                return module
        return self.model

    def _check_complete(self, prefix: str, skipped: tuple[str, ...]) -> None:
        missing = [
            name
            for name, tensor in self.model.state_dict(keep_vars=True).items()
            if tensor is not None and tensor.is_meta and _under(name, prefix) and not _under_any(name, skipped)
        ]
        if missing:
            raise missing_tensors(missing)

    def release(self, prefix: str) -> None:
        """Put the module at ``prefix`` back on the meta device; its memory is free once nobody uses it."""
        for module in self.model.get_submodule(prefix).modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(
                        torch.empty_like(parameter, device="meta"), requires_grad=False
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty_like(buffer, device="meta")
        return_free_memory()

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


def _under(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(prefix + ".")


def _under_any(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(_under(name, prefix) for prefix in prefixes)
