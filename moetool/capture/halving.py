"""Batches that do not fit the memory: a batch and what to do with it enter, results of parts that fit leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from moetool.capture.batches import Batch, halves
from moetool.capture.handover import change
from moetool.progress import Progress

Result = TypeVar("Result")
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What torch says where it has no exception of its own: on a CPU, on MPS, and below its allocator for CUDA."""


class Halving:
    """Runs batches, halving those for which the memory does not suffice."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.told = progress, False

    def run(
        self, function: Callable[[Batch, Any], Result], batch: Batch, state: Any = None
    ) -> Iterator[tuple[Batch, Result]]:
        """Yield parts of a batch with the result of each; a single sequence that does not fit raises.

        ``state`` has tensors ``[B, ...]``, which are halved with the batch.
        """
        rows = len(batch.input_ids)
        try:
            result = function(batch, state)
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        else:
            yield batch, result
            return
        self._tell(batch)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        low, high = halves(batch)
        yield from self.run(function, low, change(state, lambda tensor: tensor[: rows // 2]))
        yield from self.run(function, high, change(state, lambda tensor: tensor[rows // 2 :]))

    def _tell(self, batch: Batch) -> None:
        if not self.told:
            self.progress.note(
                f"a batch of {batch.input_ids.numel()} tokens does not fit the memory: halved "
                "(--batch-tokens chooses a smaller one from the start)"
            )
        self.told = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed to allocate memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )
