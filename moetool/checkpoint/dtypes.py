"""Data types of tensors: enters a name as safetensors or GGUF headers write it, leaves its size."""

from __future__ import annotations

BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element of every type of the safetensors format. A type that is not here may still be stored: then only the
offsets of its header tell its bytes."""

FROM_TORCH = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
}
"""Header names of torch's types, which configs and models name."""

BLOCKS = {
    "Q1_0": (128, 18),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q4_K": (256, 144),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_0": (32, 34),
    "Q8_1": (32, 40),
    "Q8_K": (256, 292),
    "IQ1_M": (256, 56),
    "IQ1_S": (256, 50),
    "IQ2_S": (256, 82),
    "IQ2_XS": (256, 74),
    "IQ2_XXS": (256, 66),
    "IQ3_S": (256, 110),
    "IQ3_XXS": (256, 98),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}
"""GGML's block types: parameters in a block, and its bytes with the scales inside it. A GGUF file gives their shapes in
parameters, so nothing is packed by shape. Its other types (``F16``, ``I8``, ...) are those of ``BITS``."""

KNOWN = frozenset(BITS) | frozenset(BLOCKS)
"""Types whose parameters can be told from their shape or packing."""


def bits_per_element(dtype: str) -> float | None:
    """Stored bits per element of a type, its block's scales included (4.5 for ``Q4_K``, exact: blocks are powers of
    two); None for an unknown type."""
    if dtype in BLOCKS:
        elements, size_bytes = BLOCKS[dtype]
        return size_bytes * 8 / elements
    return BITS.get(dtype)
