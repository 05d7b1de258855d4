"""Tiny quantised checkpoints in the published layouts, each beside a plain one of the weights that it stands for.

The quantisers are as simple as their definitions, one block at a time, and share no code with moetool or the libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import edit_config, save_checkpoint

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
Quantised = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Stored tensors by the end of their name, and the float32 weight that they stand for."""


def each_block(shape: torch.Size, rows: int, columns: int) -> Iterator[tuple[tuple[int, int], tuple[slice, slice]]]:
    for i in range(math.ceil(shape[0] / rows)):
        for j in range(math.ceil(shape[1] / columns)):
            yield (i, j), (slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))


def scales_for(weight: torch.Tensor, rows: int, columns: int, largest: float, kind: str) -> torch.Tensor:
    """One float32 scale per block, of a value that ``kind`` can store."""
    scales = torch.zeros(math.ceil(weight.shape[0] / rows), math.ceil(weight.shape[1] / columns))
    for at, block in each_block(weight.shape, rows, columns):
        scale = weight[block].abs().max() / largest
        if kind == "power":
            scale = 2.0 ** scale.log2().ceil()
        scales[at] = scale.bfloat16() if kind == "bf16" else scale
    return scales


def exponents(scales: torch.Tensor) -> torch.Tensor:
    return (scales.log2() + 127).round().to(torch.uint8)


def fp8(weight: torch.Tensor, rows: int = 0, columns: int = 0, kind: str = "float") -> tuple[torch.Tensor, ...]:
    """E4M3 numbers, scales and what they stand for; 0 rows or columns are all of them."""
    rows, columns = rows or weight.shape[0], columns or weight.shape[1]
    scales = scales_for(weight, rows, columns, 448.0, kind)
    numbers, meant = torch.zeros_like(weight, dtype=torch.float8_e4m3fn), torch.zeros_like(weight)
    for at, block in each_block(weight.shape, rows, columns):
        numbers[block] = (weight[block] / scales[at]).clamp(-448, 448).to(torch.float8_e4m3fn)
        meant[block] = numbers[block].float() * scales[at]
    return numbers, scales, meant


def fp4(weight: torch.Tensor, columns: int, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of two codes, the first in the low half, and what they stand for."""
    codes, meant = np.zeros(weight.shape, dtype=np.uint8), np.zeros(weight.shape, dtype=np.float32)
    for at, block in each_block(weight.shape, 1, columns):
        scale = np.float32(scales[at])
        distance = np.abs(weight[block].numpy()[..., None] / scale - FP4)
        codes[block] = distance.argmin(-1)
        meant[block] = FP4[codes[block]] * scale
    return torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4), torch.from_numpy(meant)


def integers(
    weight: torch.Tensor, columns: int, bits: int, asymmetric: bool, order: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Integers, scales (bfloat16), zero points and what they stand for; ``order`` is the group of each column."""
    columns = columns or weight.shape[1]
    groups = math.ceil(weight.shape[1] / columns)
    order = torch.arange(weight.shape[1]) // columns if order is None else order
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    numbers, meant = torch.zeros(weight.shape, dtype=torch.int8), torch.zeros_like(weight)
    scales = torch.zeros(weight.shape[0], groups, dtype=torch.bfloat16)
    zeros = torch.zeros(weight.shape[0], groups, dtype=torch.int8)
    for row in range(weight.shape[0]):
        for group in range(groups):
            member = order == group
            part = weight[row, member]
            if asymmetric:
                scale = ((part.max() - part.min()) / (high - low)).bfloat16().float()
                zero = (low - part.min() / scale).round().clamp(low, high)
            else:
                scale, zero = (part.abs().max() / high).bfloat16().float(), torch.tensor(0.0)
            number = (part / scale + zero).round().clamp(low, high)
            numbers[row, member] = number.to(torch.int8)
            meant[row, member] = (number - zero) * scale
            scales[row, group], zeros[row, group] = scale, zero.to(torch.int8)
    return numbers, scales, zeros, meant


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Words of 32 bits, the first number in the lowest bits, the least number stored as zero."""
    per_word = 32 // bits
    words = np.zeros((numbers.shape[0], math.ceil(numbers.shape[1] / per_word)), dtype=np.uint32)
    for row in range(numbers.shape[0]):
        for column in range(numbers.shape[1]):
            stored = int(numbers[row, column]) + 2 ** (bits - 1)
            words[row, column // per_word] |= np.uint32(stored << bits * (column % per_word))
    return torch.from_numpy(words.view(np.int32))


def deepseek_block(weight: torch.Tensor) -> Quantised:
    numbers, scales, meant = fp8(weight, 16, 16)
    return {".weight": numbers, ".weight_scale_inv": scales}, meant


def fp8_tensor(weight: torch.Tensor) -> Quantised:
    numbers, scales, meant = fp8(weight)
    return {".weight": numbers, ".weight_scale_inv": scales[0, 0], ".activation_scale": torch.tensor(3.0)}, meant


def mxfp8(weight: torch.Tensor) -> Quantised:
    numbers, scales, meant = fp8(weight, 1, 32, "power")
    return {".weight": numbers, ".weight_scale_inv": exponents(scales)}, meant


def deepseek_v4(weight: torch.Tensor) -> Quantised:
    """FP8 in blocks with scales that are powers of two; FP4 where a row is long enough (the experts)."""
    if weight.shape[1] % 32:
        numbers, scales, meant = fp8(weight, 16, 16, "power")
        return {".weight": numbers, ".scale": exponents(scales).view(torch.float8_e8m0fnu)}, meant
    scales = scales_for(weight, 1, 32, 6.0, "power")
    stored, meant = fp4(weight, 32, scales)
    return {".weight": stored.view(torch.int8), ".scale": exponents(scales).view(torch.float8_e8m0fnu)}, meant


def compressed_fp8(rows: int, columns: int) -> Callable[[torch.Tensor], Quantised]:
    def quantise(weight: torch.Tensor) -> Quantised:
        numbers, scales, meant = fp8(weight, rows, columns, "bf16")
        stored = scales.bfloat16() if rows or columns else scales[0].bfloat16()
        return {".weight": numbers, ".weight_scale": stored, ".input_scale": torch.tensor([2.0])}, meant

    return quantise


def compressed_mxfp8(weight: torch.Tensor) -> Quantised:
    numbers, scales, meant = fp8(weight, 1, 32, "power")
    return {".weight": numbers, ".weight_scale": exponents(scales)}, meant


def compressed_packed(columns: int, bits: int, asymmetric: bool = False) -> Callable[[torch.Tensor], Quantised]:
    def quantise(weight: torch.Tensor) -> Quantised:
        numbers, scales, zeros, meant = integers(weight, columns, bits, asymmetric)
        stored = {".weight_packed": pack(numbers, bits), ".weight_scale": scales}
        if asymmetric:
            stored[".weight_zero_point"] = pack(zeros.T, bits).T.contiguous()
        return {**stored, ".weight_shape": torch.tensor(weight.shape)}, meant

    return quantise


def compressed_ordered(weight: torch.Tensor) -> Quantised:
    """Groups of columns that do not lie side by side."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0)) // 8
    numbers, scales, _, meant = integers(weight, 8, 4, False, order)
    stored = {".weight_packed": pack(numbers, 4), ".weight_scale": scales, ".weight_g_idx": order.int()}
    return {**stored, ".weight_shape": torch.tensor(weight.shape)}, meant


def compressed_int8(asymmetric: bool) -> Callable[[torch.Tensor], Quantised]:
    def quantise(weight: torch.Tensor) -> Quantised:
        numbers, scales, zeros, meant = integers(weight, 0, 8, asymmetric)
        stored = {".weight": numbers, ".weight_scale": scales}
        return {**stored, **({".weight_zero_point": zeros} if asymmetric else {})}, meant

    return quantise


def nvfp4(weight: torch.Tensor, whole: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes, and FP8 scales (times ``whole``) of 16 columns."""
    stored_scales = (scales_for(weight, 1, 16, 6.0, "float") * whole).clamp(2**-6, 448).to(torch.float8_e4m3fn)
    stored, _ = fp4(weight, 16, stored_scales.float() / whole)
    return stored, stored_scales


def nvfp4_numbers(stored: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What bytes stand for with float32 scales of 16 columns."""
    codes = np.stack([stored.numpy() & 15, stored.numpy() >> 4], -1).reshape(stored.shape[0], -1)
    return torch.from_numpy(FP4[codes] * np.repeat(scales.numpy(), 16, 1)[:, : codes.shape[1]])


def compressed_nvfp4(weight: torch.Tensor) -> Quantised:
    whole = torch.tensor([448 * 6 / float(weight.abs().max())])
    stored, scales = nvfp4(weight, float(whole))
    meant = nvfp4_numbers(stored, scales.float() / whole)
    return {".weight_packed": stored, ".weight_scale": scales, ".weight_global_scale": whole}, meant


def compressed_mxfp4(weight: torch.Tensor) -> Quantised:
    scales = scales_for(weight, 1, 32, 6.0, "power")
    stored, meant = fp4(weight, 32, scales)
    return {".weight_packed": stored, ".weight_scale": exponents(scales)}, meant


def modelopt_fp8(weight: torch.Tensor) -> Quantised:
    numbers, scales, meant = fp8(weight)
    return {".weight": numbers, ".weight_scale": scales[0, 0], ".input_scale": torch.tensor(2.0)}, meant


def modelopt_nvfp4(weight: torch.Tensor) -> Quantised:
    whole = torch.tensor(float(weight.abs().max()) / (448 * 6))
    stored, scales = nvfp4(weight, 1 / float(whole))
    meant = nvfp4_numbers(stored, scales.float() * whole)
    return {".weight": stored, ".weight_scale": scales, ".weight_scale_2": whole}, meant


def gpt_oss_experts(weight: torch.Tensor) -> Quantised:
    """``[E, columns, rows]`` to blocks ``[E, rows, blocks, 16]``."""
    blocks, scales, meant = [], [], []
    for expert in weight:
        rows = expert.T.contiguous()
        scale = scales_for(rows, 1, 32, 6.0, "power")
        stored, value = fp4(rows, 32, scale)
        blocks.append(stored.view(len(rows), -1, 16))
        scales.append(exponents(scale))
        meant.append(value.T)
    return {"_blocks": torch.stack(blocks), "_scales": torch.stack(scales)}, torch.stack(meant)


def is_linear(name: str) -> bool:
    """What publishers quantise: projections of attention, MLPs and experts; never routers, embeddings or the head."""
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight", "w1.weight", "w2.weight", "w3.weight"))


def save_quantised(
    folder: Path,
    family: str,
    quantise: Callable[[str, torch.Tensor], Quantised | None],
    settings: dict[str, Any],
    **options: Any,
) -> None:
    """``folder/quantised`` and ``folder/plain``, of the same random model in bfloat16."""
    for name in ("quantised", "plain"):
        save_checkpoint(folder / name, family, **{"dtype": torch.bfloat16, **options})
    weights, stored, plain = load_file(folder / "plain" / "model.safetensors"), {}, {}
    for name, weight in weights.items():
        done = quantise(name, weight.float())
        if done is None:
            stored[name] = plain[name] = weight
            continue
        tensors, meant = done
        stem = name.removesuffix(".weight")
        stored |= {stem + end: tensor.contiguous() for end, tensor in tensors.items()}
        plain[name] = meant.to(weight.dtype).contiguous()
    save_file(stored, folder / "quantised" / "model.safetensors", {"format": "pt"})
    save_file(plain, folder / "plain" / "model.safetensors", {"format": "pt"})
    edit_config(folder / "quantised", quantization_config=settings)
