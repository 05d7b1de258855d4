"""Memory for the weights of two pieces in turn: a shape enters, memory that a released piece had, or new, leaves.

Fresh memory costs a page fault per page and zeroing, about as much as the copy into it; pinned memory far more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moetool.capture.loading import return_free_memory

_Key = tuple[tuple[int, ...], torch.dtype]


class BufferPool:
    """Host tensors in which parameters are put together; for CUDA they are pinned, and copied in the background."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.free: dict[_Key, list[torch.Tensor]] = {}
        self.older: dict[_Key, list[torch.Tensor]] = {}
        self.lent: set[int] = set()
        self.copies: list[tuple[Any, torch.Tensor]] = []
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """A piece will be loaded: what is free now and not taken for it, ``end`` frees."""
        self.older, self.free = self.free, {}

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory of a shape."""
        key = (tuple(shape), dtype)
        waiting = self.older.get(key) or self.free.get(key)
        pinned = self.device.type == "cuda"
        buffer = waiting.pop() if waiting else torch.empty(tuple(shape), dtype=dtype, pin_memory=pinned)
        self.lent.add(buffer.data_ptr())
        return buffer

    def give(self, tensor: torch.Tensor) -> None:
        """Take back what ``take`` had lent, once nobody uses it; other tensors are ignored."""
        if tensor.device.type == "cpu" and tensor.data_ptr() in self.lent:
            self.lent.remove(tensor.data_ptr())
            self.free.setdefault((tuple(tensor.shape), tensor.dtype), []).append(tensor)

    def to_device(self, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; a copy to CUDA goes on in the background, see ``arrived``."""
        if self.device.type == "cpu":
            return buffer
        if self.stream is None:
            moved = buffer.to(self.device)
            self.give(buffer)
            return moved
        with torch.cuda.stream(self.stream):
            moved = torch.empty(buffer.shape, dtype=buffer.dtype, device=self.device)
            moved.copy_(buffer, non_blocking=True)
            moved.record_stream(
                torch.cuda.default_stream(self.device)
            )  # its memory is not used again before that is done
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self.stream)
        self.copies.append((event, buffer))
        return moved

    def arrived(self) -> None:
        """Let the current stream wait for all copies; the host does not."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def end(self) -> None:
        """Free what earlier pieces had and this one did not need; take back what has been copied."""
        self.older.clear()
        for event, buffer in self.copies:
            event.synchronize()
            self.give(buffer)
        self.copies.clear()
        return_free_memory()
