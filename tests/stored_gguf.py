"""GGUF files of headers only, written by the gguf library: the tensors' bytes are holes, so they cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = Mapping[str, tuple[str, list[int]]]
"""{name: (GGML type, shape in torch's order)}."""


def size_of(kind: str, shape: list[int]) -> int:
    """Stored bytes by the library's own table."""
    elements, size_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert shape[-1] % elements == 0 if shape else elements == 1
    return prod(shape) // elements * size_bytes


def write_gguf(path: Path, architecture: str | None, metadata: Mapping[str, Any], tensors: Tensors, **raw: Any) -> Path:
    """One file. Keys of ``metadata`` get the architecture in front, those of ``raw`` (``split__count``) do not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].clear()
    values = {f"{architecture}.{key}": value for key, value in metadata.items()}
    for key, value in {**values, **{key.replace("__", "."): value for key, value in raw.items()}}.items():
        _add(writer, key, value)
    data_bytes = 0
    for name, (kind, shape) in tensors.items():
        size = size_of(kind, shape)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType[kind])
        data_bytes += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        begin = -(-stream.seek(0, 2) // 32) * 32
        stream.truncate(begin + data_bytes)
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value) if not isinstance(value, list) else writer.add_array(key, value)


MIXTRAL_METADATA = {
    "block_count": 2,
    "embedding_length": 8,
    "feed_forward_length": 4,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "expert_count": 4,
    "expert_used_count": 2,
    "context_length": 64,
}


def attention(block: str, hidden: int, queries: int, keys: int, kind: str, value_kind: str | None = None) -> Tensors:
    """Grouped-query attention and the two norms of a block."""
    return {
        f"{block}.attn_norm.weight": ("F32", [hidden]),
        f"{block}.attn_q.weight": (kind, [queries, hidden]),
        f"{block}.attn_k.weight": (kind, [keys, hidden]),
        f"{block}.attn_v.weight": (value_kind or kind, [keys, hidden]),
        f"{block}.attn_output.weight": (kind, [hidden, queries]),
        f"{block}.ffn_norm.weight": ("F32", [hidden]),
    }


def experts(block: str, count: int, hidden: int, width: int, kind: str, down_kind: str | None = None) -> Tensors:
    """A router and gated experts, fused as llama.cpp stores them."""
    return {
        f"{block}.ffn_gate_inp.weight": ("F32", [count, hidden]),
        f"{block}.ffn_gate_exps.weight": (kind, [count, width, hidden]),
        f"{block}.ffn_up_exps.weight": (kind, [count, width, hidden]),
        f"{block}.ffn_down_exps.weight": (down_kind or kind, [count, hidden, width]),
    }


def around(vocabulary: int, hidden: int, kind: str, head_kind: str | None = None) -> Tensors:
    """What is outside of the blocks."""
    return {
        "token_embd.weight": (kind, [vocabulary, hidden]),
        "output_norm.weight": ("F32", [hidden]),
        "output.weight": (head_kind or kind, [vocabulary, hidden]),
    }


def mixtral_gguf(kind: str = "F16") -> dict[str, tuple[str, list[int]]]:
    """The tensors of ``tests.stored.MIXTRAL``."""
    tensors = dict(around(10, 8, kind))
    for block in ("blk.0", "blk.1"):
        tensors |= {**attention(block, 8, 8, 4, kind), **experts(block, 4, 8, 4, kind)}
    return tensors


def write_mixtral(path: Path, tensors: Tensors | None = None, **raw: Any) -> Path:
    """A file of ``mixtral_gguf``, or of other tensors under its metadata."""
    return write_gguf(path, "llama", MIXTRAL_METADATA, mixtral_gguf() if tensors is None else tensors, **raw)
