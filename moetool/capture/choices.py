"""What ``auto`` means: from options, family and checkpoint to the device, the engine and the layers of a capture."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from moetool.capture.quantized import check_quantize, needs_quantizer
from moetool.checkpoint.types import Checkpoint
from moetool.errors import MoetoolError
from moetool.model.families import Family, find


def pick_device(wanted: str) -> torch.device:
    """``auto`` is the first of CUDA, MPS and CPU that is there."""
    kind, colon, number = wanted.partition(":")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    known = not colon or (kind == "cuda" and number.isdecimal() and int(number) < torch.cuda.device_count())
    if not available.get(kind, False) or not known:
        raise MoetoolError(f"--device {wanted}: not available here", "use --device cpu, or auto")
    return torch.device(wanted)


def pick_engine(wanted: str, family: Family, checkpoint: Checkpoint, quantize: str | None = None) -> str:
    """``stream`` wherever the family and the stored types allow it; ``quantize`` is that of CaptureOptions.

    Raises MoetoolError for quantised weights that cannot be run here.
    """
    if quantize is not None:
        check_quantize(quantize, checkpoint)
    reason = family.reason if family.engine == "resident" else ""
    if quantize is not None:
        reason = f"--quantize {quantize} keeps the quantised model in memory"
    elif needs_quantizer(checkpoint):
        reason = "its weights run only as they are quantised, in transformers"
    if wanted == "auto":
        return "resident" if reason else "stream"
    if wanted == "stream" and reason:
        raise MoetoolError(f"--engine stream: {checkpoint.name} cannot be streamed: {reason}", "use --engine resident")
    return wanted


def wanted_layers(selection: str | None, available: list[int]) -> list[int]:
    """Parse ``0-3,7``; MoetoolError for a layer that has no router."""
    if selection is None:
        return available
    wanted: set[int] = set()
    for part in selection.split(","):
        low, dash, high = part.strip().partition("-")
        try:
            first, last = int(low), int(high if dash else low)
        except ValueError:
            raise MoetoolError(
                f"--layers {selection}: {part!r} is no layer number or range", "for example 0-3,7"
            ) from None
        unknown = next((layer for layer in range(first, last + 1) if layer not in available), None)
        if unknown is not None or last < first:
            problem = f"{part.strip()} selects no layer" if unknown is None else f"layer {unknown} has no router"
            raise MoetoolError(f"--layers {selection}: {problem}", f"MoE layers: {', '.join(map(str, available))}")
        wanted.update(range(first, last + 1))
    return sorted(wanted)


def longrope_boundary(config: Mapping[str, Any]) -> int | None:
    """The length beyond which LongRoPE turns positions otherwise, for all sequences of a batch; None for other models.

    transformers looks at the longest sequence of the batch, so a short one beside it would not be read as on its own.
    """
    scaling = find(config, "rope_scaling", "rope_parameters")
    if not isinstance(scaling, Mapping):
        return None
    for one in (scaling, *(part for part in scaling.values() if isinstance(part, Mapping))):
        if "longrope" in (one.get("rope_type"), one.get("type")):
            length = one.get("original_max_position_embeddings") or find(config, "original_max_position_embeddings")
            return length if isinstance(length, int) else None
    return None


def default_host_memory() -> int:
    """Half of the memory that is free, for hidden states; at least 1 GiB."""
    return max(free_memory(torch.device("cpu")) // 2, 2**30)


def free_memory(device: torch.device) -> int:
    """Bytes that a device has free; those of the host for devices that share its memory or do not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    return max(min(int(psutil.virtual_memory().available), *_container_limits()), 0)


def _container_limits() -> Iterator[int]:
    """Bytes that the control group of this process leaves: a container may have less than its host."""
    root = Path("/sys/fs/cgroup")
    second, first = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for limit, used in (second, tuple(f"memory/{name}" for name in first)):
        with suppress(OSError, ValueError):  # no such group, or no limit
            yield int((root / limit).read_text()) - int((root / used).read_text())
    yield sys.maxsize
