"""Token mixers by name: the tensors of a decoder layer enter, modules of weights leave, sorted by what they are for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

_WEIGHTS = re.compile(r"(?:\.(?:weight|qweight|weight_packed|base_layer))+$")
# fmt: off
PARTS = {
    "query": ("q_proj", "query", "wq", "q", "attn_q", "q_b_proj", "attn_q_b", "wq_b"),
    "key": ("k_proj", "key", "key_proj", "wk", "k", "attn_k"),
    "value": ("v_proj", "value", "value_proj", "wv", "v", "attn_v", "v_proj_current", "v_proj_delayed"),
    "fused": ("qkv_proj", "Wqkv", "query_key_value", "c_attn", "qkv", "wqkv", "attn_qkv", "in_proj_qkv",
              "in_proj_qkvz"),
    "key_value": ("kv_proj", "wkv"),
    "latent": ("kv_a_proj_with_mqa", "attn_kv_a_mqa", "wkv_a", "kv_a_proj"),
    "latent_norm": ("kv_a_layernorm", "attn_kv_a_norm", "kv_norm", "norm"),
    "key_norm": ("k_norm", "attn_k_norm", "k_layernorm", "key_layernorm"),
    "expand": ("kv_b_proj", "attn_kv_b", "wkv_b", "attn_k_b", "attn_v_b"),
    "output": ("o_proj", "out_proj", "wo", "o", "dense", "attn_output", "attn_out", "ssm_out", "c_proj", "out"),
    "decay": ("A_log", "ssm_a"),
    "select": ("x_proj", "ssm_x"),
    "convolution": ("conv1d", "q_conv1d", "k_conv1d", "v_conv1d", "ssm_conv1d", "ssm_conv1d_q", "ssm_conv1d_k",
                    "ssm_conv1d_v", "conv_qk_depthwise", "conv_qk_grouped", "conv.conv", "shortconv.conv"),
}
# fmt: on
_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_INDEX_KEYS = re.compile(r"indexer\.(?:wk|k_proj|kv_proj|attn_k|compressor\.wkv)$")
_CROSS = re.compile(r"(?:EncDecAttention|cross_attn|cross_attention|encoder_attn)\.")
_CROSS_ROOT = "cross"


@dataclass(frozen=True, slots=True)
class Weight:
    """The tensors of one name in one layer."""

    name: str
    """After the layer's number, indices as ``#``: ``self_attn.k_proj.weight``."""
    shape: tuple[int, ...]
    count: int
    parameters: int
    """Logical ones, of all ``count`` tensors."""


@dataclass(slots=True)
class Module:
    """A mixer's weights by what they are for."""

    layer: int
    is_cross: bool = False
    """Whether it reads an encoder."""
    parts: dict[str, list[Weight]] = field(default_factory=lambda: defaultdict(list))
    """By what it is for: a key of ``PARTS``, ``index`` or ``compressor``."""
    names: list[str] = field(default_factory=list)

    def parameters(self, part: str) -> int:
        """Logical parameters of all weights of a part."""
        return sum(weight.parameters for weight in self.parts.get(part, ()))


def sort_modules(layer: int, weights: Iterable[Weight]) -> list[Module]:
    """The mixers of a layer, by the name of their module; tensors that are no part of one go with the first."""
    modules: dict[str, Module] = {}
    for weight in sorted(weights, key=lambda weight: _part_of(weight.name) is None):
        _sort_in(modules, layer, weight)
    return [module for _, module in sorted(modules.items())]


def _part_of(name: str) -> str | None:
    names = _WEIGHTS.sub("", name).split(".")
    return _PART_OF.get(".".join(names[-2:])) or _PART_OF.get(names[-1])


def _sort_in(modules: dict[str, Module], layer: int, weight: Weight) -> None:
    stem = _WEIGHTS.sub("", weight.name)
    names, part = stem.split("."), _part_of(weight.name)
    root = _CROSS_ROOT if _CROSS.search(stem) else names[0] if part and len(names) > 1 else ""
    # A block of llama.cpp has no modules, and parts of a mixer may lie deeper: they belong to the first module found.
    root = root or next(iter(modules), "")
    module = modules.setdefault(root, Module(layer, root == _CROSS_ROOT))
    module.names.append(stem)
    if _INDEX_KEYS.search(stem):
        module.parts["index"].append(weight)
    elif "indexer." in stem:
        return
    elif "compressor." in stem:
        module.parts["compressor"].append(weight)
    elif part and not stem.endswith("bias"):
        module.parts[part].append(weight)
