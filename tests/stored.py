"""Checkpoints of headers only: the tensors' bytes are holes in sparse files, so a terabyte costs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from moetool.checkpoint.dtypes import BITS

Tensors = Mapping[str, tuple[str, list[int]]]


def make_header(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """A valid header of tensors given as {name: (dtype, shape)}, and the bytes of their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return header, end


def write_raw(path: Path, header: bytes, data_bytes: int, length: int | None = None) -> Path:
    """A file that claims a header of ``length`` bytes (default: the true one)."""
    with path.open("wb") as stream:
        stream.write((len(header) if length is None else length).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + data_bytes)
    return path


def write_safetensors(path: Path, tensors: Tensors) -> Path:
    header, data_bytes = make_header(tensors)
    return write_raw(path, json.dumps(header).encode(), data_bytes)


def write_checkpoint(folder: Path, config: Mapping[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    """config.json and one safetensors file, or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        write_safetensors(folder / file, {name: tensors[name] for name in tensors if files[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


MIXTRAL = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Per layer: q and o 8x8, k and v 4x8, two norms of 8, router 4x8, and four experts of three 4x8 matrices."""


def mixtral_tensors(dtype: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    """The tensors of MIXTRAL in the published layout: one per expert."""
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [10, 8]}
    for layer in range(2):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.self_attn.{name}_proj.weight": [8, 8] for name in "qo"}
        shapes |= {f"{block}.self_attn.{name}_proj.weight": [4, 8] for name in "kv"}
        shapes |= {f"{block}.{name}_layernorm.weight": [8] for name in ("input", "post_attention")}
        shapes[f"{block}.block_sparse_moe.gate.weight"] = [4, 8]
        for expert in range(4):
            weights = f"{block}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{weights}.w{i}.weight": [8, 4] if i == 2 else [4, 8] for i in (1, 2, 3)}
    shapes |= {"model.norm.weight": [8], "lm_head.weight": [10, 8]}
    return {name: (dtype, shape) for name, shape in shapes.items()}
