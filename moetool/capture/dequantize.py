"""Stored numbers to weights: enters a packed tensor with its scales, leaves the float tensor that they stand for.

Every product is computed in float32 and rounded once to the wanted type, as the kernels of the formats' authors do, so
the result depends neither on the device nor on how much is done at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

import torch
from torch.nn import functional

from moetool.errors import MoetoolError

Shape = tuple[int, ...]

_CHUNK = 1 << 22
"""Elements that are float32 at a time: some megabytes beside the weight itself."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of E2M1, by their four bits."""
_FP4_PAIRS = torch.tensor([(_FP4[byte & 15], _FP4[byte >> 4]) for byte in range(256)])
"""Both values of a byte; the low half is the first."""
_POWERS = torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [float("nan")])
"""The values of E8M0, by their byte: a table, because ``exp2`` need not be exact on a GPU."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the numbers of a weight are stored."""

    numbers: Literal["plain", "fp4", "packed"]
    """One number per element, two FP4 numbers per byte, or integers of ``bits`` bits in words of 32."""
    block: tuple[int, int]
    """The rows and columns that share a scale; 0 stands for all of them."""
    bits: int = 8
    split: bool = False
    """Whether the bytes of a block are a dimension of their own."""
    transposed: bool = False
    """Whether the model has the weight's columns first."""
    inverse: bool = False
    """Whether the global scale divides the others instead of multiplying them."""

    def shape(self, stored: Shape) -> Shape:
        """The shape of the numbers in a stored tensor; integers in words may be fewer, by ``weight_shape``."""
        if self.split:
            stored = (*stored[:-2], stored[-2] * stored[-1])
        return (*stored[:-1], stored[-1] * self.per_element)

    @property
    def per_element(self) -> int:
        """Numbers in one stored element."""
        return {"fp4": 2, "packed": 32 // self.bits}.get(self.numbers, 1)

    def grid(self, shape: Shape) -> Shape:
        """The shape of the scales of numbers of this shape."""
        rows, columns = (length or size for length, size in zip(self.block, shape[-2:], strict=True))
        return (*shape[:-2], ceil(shape[-2] / rows), ceil(shape[-1] / columns))

    def model_shape(self, stored: Shape, scales: Shape, has_true_shape: bool) -> Shape:
        """The shape that the model wants; empty where only ``weight_shape`` tells how much of the last word is used."""
        *lead, rows, columns = self.shape(stored)
        if self.numbers == "packed" and self.block[1]:
            columns = scales[-1] * self.block[1]  # groups fill a row
        elif self.numbers == "packed" and has_true_shape:
            return ()
        return (*lead, columns, rows) if self.transposed else (*lead, rows, columns)

    def fits(self, stored: Shape, scales: Shape) -> bool:
        """Whether scales of this shape belong to a tensor that is stored in that shape."""
        if len(stored) < 2 + self.split or 0 in stored:
            return False
        *lead, columns = self.shape(stored)
        unused = self.per_element if self.numbers == "packed" else 1  # the last word may be filled in part
        return any(_same(self.grid((*lead, columns - less)), scales) for less in range(unused))


def _same(grid: Shape, scales: Shape) -> bool:
    """A row or column of scales may be written as the other, or without dimensions of one."""
    return scales == grid or (prod(scales) == prod(grid) and 1 in grid[-2:] and len(scales) <= len(grid))


def dequantize(parts: Mapping[str, torch.Tensor], layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """The weight in ``dtype``; ``parts`` are ``weight`` and ``scale``, and what the format has beside them.

    Raises MoetoolError where the parts do not belong together.
    """
    stored = parts["weight"]
    shape = _true_shape(layout.shape(tuple(stored.shape)), parts.get("shape"))
    scales = _scales(parts, layout).reshape(-1, *layout.grid(shape)[-2:])
    zeros = _zero_points(parts, layout, scales)
    order = parts.get("order")
    if order is not None and int(order.min()) < 0:
        order = None  # the place for an order that was never filled
    stored = stored.flatten(-2) if layout.split else stored
    matrices = stored.reshape(-1, *stored.shape[-2:])
    size = (shape[-1], shape[-2]) if layout.transposed else shape[-2:]
    result = torch.empty((len(matrices), *size), dtype=dtype, device=stored.device)
    for index, matrix in enumerate(matrices):
        target = result[index].T if layout.transposed else result[index]
        zero = None if zeros is None else zeros[index]
        _fill(target, matrix, scales[index], zero, order, layout)
    return result.reshape(*shape[:-2], *size)


def _fill(
    target: torch.Tensor,
    stored: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    order: torch.Tensor | None,
    layout: Layout,
) -> None:
    """Write one matrix into ``target``, some rows at a time."""
    rows, columns = target.shape
    height, width = (length or size for length, size in zip(layout.block, (rows, columns), strict=True))
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        end = min(start + step, rows)
        block = torch.arange(start, end, device=stored.device) // height
        numbers = _numbers(stored[start:end], layout)[:, :columns]
        if zeros is not None:
            numbers = numbers - _spread(zeros[block], width, columns, order)
        target[start:end] = numbers * _spread(scales[block], width, columns, order)


def _spread(grid: torch.Tensor, width: int, columns: int, order: torch.Tensor | None) -> torch.Tensor:
    """One value per column, from one per block of columns; ``order`` names the block of each column."""
    if order is not None:
        return grid[:, order.long()]
    return grid if grid.shape[1] == 1 else grid.repeat_interleave(width, 1)[:, :columns]


def _numbers(stored: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Float32 numbers, before scales and zero points, of some rows."""
    if layout.numbers == "fp4":
        codes = stored.contiguous().view(torch.uint8).int()
        return functional.embedding(codes, _FP4_PAIRS.to(stored.device)).flatten(-2)
    if layout.numbers == "packed":
        return _integers(stored, layout.bits)
    return stored.float()


def _integers(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers of some bits, the lowest bits of a word first; they are stored without a sign, so the middle is zero."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts & (1 << bits) - 1) - (1 << bits - 1)).flatten(-2).float()


def _scales(parts: Mapping[str, torch.Tensor], layout: Layout) -> torch.Tensor:
    """Float32 scales of the blocks, the scale of the whole tensor included."""
    scales = parts["scale"]
    if scales.dtype in (torch.uint8, torch.float8_e8m0fnu):
        scales = _POWERS.to(scales.device)[scales.view(torch.uint8).int()]
    whole = parts.get("global_scale")
    if whole is None:
        return scales.float()
    return scales.float() / whole.float() if layout.inverse else scales.float() * whole.float()


def _zero_points(parts: Mapping[str, torch.Tensor], layout: Layout, scales: torch.Tensor) -> torch.Tensor | None:
    """Float32 zero points in the shape of the scales; words hold those of several rows."""
    zeros = parts.get("zero_point")
    if zeros is None:
        return None
    if layout.numbers == "packed":
        zeros = _integers(zeros.T, layout.bits).T[: scales.shape[-2]]
    if zeros.numel() != scales.numel():
        raise MoetoolError(f"{zeros.numel()} zero points are stored for {scales.numel()} scales")
    return zeros.float().reshape(scales.shape)


def _true_shape(shape: Shape, stored: torch.Tensor | None) -> Shape:
    """``weight_shape`` where it is stored: the last word of a row may be filled in part only."""
    if stored is None:
        return shape
    true = tuple(int(size) for size in stored)
    if len(true) != len(shape) or true[:-1] != shape[:-1] or not 0 <= shape[-1] - true[-1] < 32:
        raise MoetoolError(f"weight_shape is {list(true)}, and what is packed has shape {list(shape)}")
    return true
