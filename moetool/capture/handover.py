"""What one layer hands to the next: enters as nested tensors, leaves as a list of them and its shape.

Most layers return their hidden states. Some return the positions that an indexer chose or the state of a router too
(GLM-5, ZAYA), or leave keys and values in a dictionary for later layers (Gemma 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from moetool.errors import MoetoolError

Shape = Any
"""JSON: the place of a tensor in the list, None, ``["tuple", ...]`` or a dictionary of shapes."""


def flatten(value: Any, tensors: list[torch.Tensor]) -> Shape:
    """Append the tensors of a nested value to a list; returns what ``rebuild`` needs to nest them again."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return len(tensors) - 1
    if isinstance(value, tuple | list):
        return ["tuple", *(flatten(item, tensors) for item in value)]
    if isinstance(value, dict):
        return {str(key): flatten(item, tensors) for key, item in value.items()}
    raise MoetoolError(f"a layer hands a {type(value).__name__} to the next one", "use --engine resident")


def rebuild(shape: Shape, tensors: Sequence[torch.Tensor]) -> Any:
    """The nested value of a shape, with these tensors in it."""
    if shape is None:
        return None
    if isinstance(shape, int):
        return tensors[shape]
    if isinstance(shape, list):
        return tuple(rebuild(item, tensors) for item in shape[1:])
    return {key: rebuild(item, tensors) for key, item in shape.items()}


def change(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nested value with every tensor replaced."""
    tensors: list[torch.Tensor] = []
    shape = flatten(value, tensors)
    return rebuild(shape, [function(tensor) for tensor in tensors])


def poison(tensor: torch.Tensor) -> torch.Tensor:
    """The same shape, of values that no layer can use unnoticed, in no memory: NaN, or an index beyond everything."""
    if tensor.is_floating_point():
        return tensor.new_full((), float("nan")).expand(tensor.shape)
    beyond = True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    return tensor.new_full((), beyond).expand(tensor.shape)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start a copy off the device without waiting: into pinned memory from CUDA, where later copies back follow on the
    same stream; on the CPU there is nothing to copy.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
