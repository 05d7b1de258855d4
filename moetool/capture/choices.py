"""What ``auto`` means: from options, family and checkpoint to the device, the engine and the layers of a capture."""

from __future__ import annotations

import torch

from moetool.capture.loading import PACKED_DTYPES
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


def pick_engine(wanted: str, family: Family, checkpoint: Checkpoint) -> str:
    """``stream`` wherever the family and the stored types allow it."""
    quantised = quantization_of(checkpoint)
    reason = family.reason if family.engine == "resident" else "its weights are quantised" if quantised else ""
    if wanted == "auto":
        return "resident" if reason else "stream"
    if wanted == "stream" and reason:
        raise MoetoolError(
            f"--engine stream: {checkpoint.name} cannot be streamed yet: {reason}", "use --engine resident"
        )
    return wanted


def quantization_of(checkpoint: Checkpoint) -> bool:
    """Whether the config says that weights are quantised; MoetoolError where only the weights are.

    Without their scales such weights are other numbers, and nothing else would show it.
    """
    if find(checkpoint.config, "quantization_config", "compression_config"):
        return True
    packed = next((tensor for tensor in checkpoint.tensors if tensor.dtype in PACKED_DTYPES), None)
    if packed is not None:
        raise MoetoolError(
            f"{checkpoint.name}: {packed.name} is stored as {packed.dtype}, and config.json has no quantization_config",
            "take the config.json that belongs to these weights",
        )
    return False


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
