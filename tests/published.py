"""Headers of checkpoints as they are published: names, types and shapes by hand, written as sparse files.

A model is its plain tensors and its matrices; how the matrices are stored is a function of name, rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moetool.model.presets import PRESETS
from tests.stored import Tensors

Stored = dict[str, tuple[str, list[int]]]
Store = Callable[[str, int, int], Stored]
"""How a matrix is stored: name without ``.weight``, rows (outputs), columns (inputs)."""


@dataclass(slots=True)
class Published:
    """A model before it is known how its matrices are stored."""

    config: Mapping[str, Any]
    plain: Stored = field(default_factory=dict)
    """Embeddings, norms, biases and whatever no scheme touches."""
    matrices: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rows and columns by name without ``.weight``."""

    def tensors(self, store: Store, *, keep: tuple[str, ...] = ()) -> Stored:
        """All tensors; matrices whose names end with one of ``keep`` stay in bfloat16."""
        found = dict(self.plain)
        for name, (rows, columns) in self.matrices.items():
            found |= (bf16 if name.endswith(keep or "?") else store)(name, rows, columns)
        return found


def with_quantization(config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The config of a quantised checkpoint."""
    return {**config, "quantization_config": settings}


def data_bytes(folder: Path) -> int:
    """Bytes of the tensors' data by the sizes of the files alone."""
    sizes = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            sizes += path.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    return sizes


# How a matrix is stored --------------------------------------------------------------------------------------------


def bf16(name: str, rows: int, columns: int) -> Stored:
    return {f"{name}.weight": ("BF16", [rows, columns])}


def fp8_blocks(name: str, rows: int, columns: int) -> Stored:
    """DeepSeek: a scale per block of 128 x 128."""
    scales = [-(-rows // 128), -(-columns // 128)]
    return {f"{name}.weight": ("F8_E4M3", [rows, columns]), f"{name}.weight_scale_inv": ("F32", scales)}


def fp8_tensor(name: str, rows: int, columns: int) -> Stored:
    """One scale for the matrix and one for its inputs."""
    scales = {f"{name}.{which}_scale": ("F32", []) for which in ("weight", "input")}
    return {f"{name}.weight": ("F8_E4M3", [rows, columns]), **scales}


def nvfp4_modelopt(name: str, rows: int, columns: int) -> Stored:
    """ModelOpt: two per byte, a scale of eight bits per 16, one more of 32 bits, and one for the inputs."""
    cache = {f"{name}.{name[-6]}_scale": ("F32", [])} if name.endswith((".k_proj", ".v_proj")) else {}
    return {
        f"{name}.weight": ("U8", [rows, columns // 2]),
        f"{name}.weight_scale": ("F8_E4M3", [rows, columns // 16]),
        f"{name}.weight_scale_2": ("F32", []),
        f"{name}.input_scale": ("F32", []),
        **cache,
    }


def awq(name: str, rows: int, columns: int) -> Stored:
    """Eight outputs in an integer, groups of 128 inputs."""
    return {
        f"{name}.qweight": ("I32", [columns, rows // 8]),
        f"{name}.qzeros": ("I32", [columns // 128, rows // 8]),
        f"{name}.scales": ("F16", [columns // 128, rows]),
    }


def gptq(bits: int, order: bool) -> Store:
    """32 / bits inputs in an integer, groups of 128 inputs; ``order``: each input names its group."""

    def store(name: str, rows: int, columns: int) -> Stored:
        return {
            f"{name}.qweight": ("I32", [columns * bits // 32, rows]),
            f"{name}.qzeros": ("I32", [columns // 128, rows * bits // 32]),
            f"{name}.scales": ("F16", [columns // 128, rows]),
            **({f"{name}.g_idx": ("I32", [columns])} if order else {}),
        }

    return store


def pack_quantized(name: str, rows: int, columns: int) -> Stored:
    """compressed-tensors, W4A16: eight inputs in an integer, groups of 128."""
    return {
        f"{name}.weight_packed": ("I32", [rows, columns // 8]),
        f"{name}.weight_scale": ("BF16", [rows, columns // 128]),
        f"{name}.weight_shape": ("I64", [2]),
    }


def nvfp4_pack_quantized(name: str, rows: int, columns: int) -> Stored:
    """compressed-tensors, NVFP4."""
    return {
        f"{name}.weight_packed": ("U8", [rows, columns // 2]),
        f"{name}.weight_scale": ("F8_E4M3", [rows, columns // 16]),
        f"{name}.weight_global_scale": ("F32", [1]),
        f"{name}.input_global_scale": ("F32", [1]),
    }


def nf4(name: str, rows: int, columns: int) -> Stored:
    """bitsandbytes with double quantisation: a byte per 64 parameters, a float per 256 such bytes, two code books."""
    count, weight = rows * columns, f"{name}.weight"
    return {
        weight: ("U8", [count // 2, 1]),
        f"{weight}.absmax": ("U8", [count // 64]),
        f"{weight}.quant_map": ("F32", [16]),
        f"{weight}.nested_absmax": ("F32", [-(-count // 64 // 256)]),
        f"{weight}.nested_quant_map": ("F32", [256]),
        f"{weight}.quant_state.bitsandbytes__nf4": ("U8", [92]),
    }


# Models ------------------------------------------------------------------------------------------------------------


def _norms(block: str, hidden: int) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{block}.{name}.weight", ("BF16", [hidden])


def _ends(hidden: int, vocabulary: int, norm: str = "model.norm", embedding: str = "model.embed_tokens") -> Stored:
    table = ("BF16", [vocabulary, hidden])
    return {f"{embedding}.weight": table, "lm_head.weight": table, f"{norm}.weight": ("BF16", [hidden])}


def _ffn(block: str, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    return {
        f"{block}.gate_proj": (inner, hidden),
        f"{block}.up_proj": (inner, hidden),
        f"{block}.down_proj": (hidden, inner),
    }


def mixtral(layers: int = 32) -> Published:
    """mistralai/Mixtral-8x7B-v0.1."""
    model = Published({**PRESETS["mixtral-8x7b"].config, "num_hidden_layers": layers}, _ends(4096, 32000))
    for layer in range(layers):
        block = f"model.layers.{layer}"
        model.plain.update(_norms(block, 4096))
        model.plain[f"{block}.block_sparse_moe.gate.weight"] = ("BF16", [8, 4096])
        for name, rows in (("q", 4096), ("k", 1024), ("v", 1024), ("o", 4096)):
            model.matrices[f"{block}.self_attn.{name}_proj"] = (rows, 4096)
        for expert in range(8):
            for name in ("w1", "w2", "w3"):
                shape = (4096, 14336) if name == "w2" else (14336, 4096)
                model.matrices[f"{block}.block_sparse_moe.experts.{expert}.{name}"] = shape
    return model


def qwen3_30b() -> Published:
    """Qwen/Qwen3-30B-A3B."""
    model = Published(PRESETS["qwen3-30b-a3b"].config, _ends(2048, 151936))
    for layer in range(48):
        block = f"model.layers.{layer}"
        model.plain.update(_norms(block, 2048))
        model.plain |= {f"{block}.self_attn.{name}_norm.weight": ("BF16", [128]) for name in "qk"}
        model.plain[f"{block}.mlp.gate.weight"] = ("BF16", [128, 2048])
        model.matrices |= {f"{block}.self_attn.{name}_proj": (rows, 2048) for name, rows in QWEN3_QKV.items()}
        model.matrices[f"{block}.self_attn.o_proj"] = (2048, 4096)
        for expert in range(128):
            model.matrices |= _ffn(f"{block}.mlp.experts.{expert}", 2048, 768)
    return model


QWEN3_QKV = {"q": 4096, "k": 512, "v": 512}


def deepseek_v3() -> Published:
    """deepseek-ai/DeepSeek-V3: 61 layers, three of them dense, and layer 61 for multi-token prediction."""
    hidden = 7168
    model = Published(PRESETS["deepseek-v3"].config, _ends(hidden, 129280))
    for layer in range(62):
        block = f"model.layers.{layer}"
        model.plain.update(_norms(block, hidden))
        for name, size in (("q_a_layernorm", 1536), ("kv_a_layernorm", 512)):
            model.plain[f"{block}.self_attn.{name}.weight"] = ("BF16", [size])
        for name, rows, columns in (
            ("q_a_proj", 1536, hidden), ("q_b_proj", 128 * 192, 1536), ("kv_a_proj_with_mqa", 576, hidden),
            ("kv_b_proj", 128 * 256, 512), ("o_proj", hidden, 128 * 128),
        ):  # fmt: skip
            model.matrices[f"{block}.self_attn.{name}"] = (rows, columns)
        if layer < 3:
            model.matrices |= _ffn(f"{block}.mlp", hidden, 18432)
            continue
        model.plain[f"{block}.mlp.gate.weight"] = ("BF16", [256, hidden])
        model.plain[f"{block}.mlp.gate.e_score_correction_bias"] = ("F32", [256])
        model.matrices |= _ffn(f"{block}.mlp.shared_experts", hidden, 2048)
        for expert in range(256):
            model.matrices |= _ffn(f"{block}.mlp.experts.{expert}", hidden, 2048)
    model.plain |= {
        f"model.layers.61.{name}.weight": ("BF16", shape)
        for name, shape in (
            ("embed_tokens", [129280, hidden]), ("shared_head.head", [129280, hidden]), ("shared_head.norm", [hidden]),
            ("enorm", [hidden]), ("hnorm", [hidden]), ("eh_proj", [hidden, 2 * hidden]),
        )
    }  # fmt: skip
    return model


def gpt_oss(layers: int, experts: int) -> Published:
    """openai/gpt-oss-120b (36, 128) and -20b (24, 32): experts fused in MXFP4, everything else in bfloat16."""
    size = 2880
    model = Published(
        PRESETS["gpt-oss-120b" if experts == 128 else "gpt-oss-20b"].config, _ends(size, 201088)
    )  # fmt: skip
    for layer in range(layers):
        block, routed = f"model.layers.{layer}", f"model.layers.{layer}.mlp.experts"
        model.plain.update(_norms(block, size))
        for name, rows, columns in (("q", 4096, size), ("k", 512, size), ("v", 512, size), ("o", size, 4096)):
            model.plain[f"{block}.self_attn.{name}_proj.weight"] = ("BF16", [rows, columns])
            model.plain[f"{block}.self_attn.{name}_proj.bias"] = ("BF16", [rows])
        model.plain[f"{block}.self_attn.sinks"] = ("BF16", [64])
        model.plain[f"{block}.mlp.router.weight"] = ("BF16", [experts, size])
        model.plain[f"{block}.mlp.router.bias"] = ("BF16", [experts])
        for name, rows in (("gate_up_proj", 2 * size), ("down_proj", size)):
            model.plain[f"{routed}.{name}_blocks"] = ("U8", [experts, rows, size // 32, 16])
            model.plain[f"{routed}.{name}_scales"] = ("U8", [experts, rows, size // 32])
            model.plain[f"{routed}.{name}_bias"] = ("BF16", [experts, rows])
    return model


def granite() -> Published:
    """ibm-granite/granite-3.1-3b-a800m-base: experts fused without a component ``experts``, the head tied."""
    hidden, inner = 1536, 512
    model = Published(PRESETS["granite-3.1-3b-a800m"].config, _ends(hidden, 49155))
    del model.plain["lm_head.weight"]
    for layer in range(32):
        block = f"model.layers.{layer}"
        model.plain.update(_norms(block, hidden))
        for name, rows in (("q", hidden), ("k", 512), ("v", 512), ("o", hidden)):
            model.matrices[f"{block}.self_attn.{name}_proj"] = (rows, hidden)
        moe = f"{block}.block_sparse_moe"
        model.matrices[f"{moe}.router.layer"] = (40, hidden)
        model.plain[f"{moe}.input_linear.weight"] = ("BF16", [40, 2 * inner, hidden])
        model.plain[f"{moe}.output_linear.weight"] = ("BF16", [40, hidden, inner])
    return model


def qwen3_vl() -> Published:
    """Qwen/Qwen3-VL-30B-A3B-Instruct: a decoder like Qwen3-30B's with fused experts, and a tower of 27 blocks."""
    text = {**PRESETS["qwen3-30b-a3b"].config, "model_type": "qwen3_vl_moe_text", "max_position_embeddings": 262144}
    config = {
        "model_type": "qwen3_vl_moe",
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "tie_word_embeddings": False,
        "text_config": text,
        "vision_config": {"model_type": "qwen3_vl_moe", "depth": 27, "hidden_size": 1152, "intermediate_size": 4304},
    }
    decoder = "model.language_model"
    model = Published(config, _ends(2048, 151936, f"{decoder}.norm", f"{decoder}.embed_tokens"))
    for layer in range(48):
        block = f"{decoder}.layers.{layer}"
        model.plain.update(_norms(block, 2048))
        model.plain |= {f"{block}.self_attn.{name}_norm.weight": ("BF16", [128]) for name in "qk"}
        model.plain[f"{block}.mlp.gate.weight"] = ("BF16", [128, 2048])
        model.plain[f"{block}.mlp.experts.gate_up_proj"] = ("BF16", [128, 2048, 1536])
        model.plain[f"{block}.mlp.experts.down_proj"] = ("BF16", [128, 768, 2048])
        model.matrices |= {f"{block}.self_attn.{name}_proj": (rows, 2048) for name, rows in QWEN3_QKV.items()}
        model.matrices[f"{block}.self_attn.o_proj"] = (2048, 4096)
    model.plain.update(_tower())
    return model


def _tower() -> Stored:
    wide = 1152
    shapes: dict[str, list[int]] = {
        "patch_embed.proj.weight": [wide, 3, 2, 16, 16],
        "patch_embed.proj.bias": [wide],
        "pos_embed.weight": [2304, wide],
    }
    for index in range(27):
        block = f"blocks.{index}"
        for name, rows, columns in (
            ("attn.qkv", 3 * wide, wide), ("attn.proj", wide, wide), ("mlp.linear_fc1", 4304, wide),
            ("mlp.linear_fc2", wide, 4304),
        ):  # fmt: skip
            shapes |= {f"{block}.{name}.weight": [rows, columns], f"{block}.{name}.bias": [rows]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.{part}": [wide] for part in ("weight", "bias")}
    for name, size in (("merger", wide), *((f"deepstack_merger_list.{i}", 4 * wide) for i in range(3))):
        shapes |= {f"{name}.norm.{part}": [size] for part in ("weight", "bias")}
        for layer, rows in (("linear_fc1", 4 * wide), ("linear_fc2", 2048)):
            shapes |= {f"{name}.{layer}.weight": [rows, 4 * wide], f"{name}.{layer}.bias": [rows]}
    return {f"model.visual.{name}": ("BF16", shape) for name, shape in shapes.items()}


def nemotron_h() -> Published:
    """nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B: every layer is a mixer of one kind, by the pattern of the config."""
    config, hidden, inner = PRESETS["nemotron-3-nano"].config, 2688, 64 * 64
    model = Published(config, _ends(hidden, 131072, "backbone.norm_f", "backbone.embeddings"))
    convolved = inner + 2 * 8 * 128
    for layer, kind in enumerate(config["hybrid_override_pattern"]):
        model.plain[f"backbone.layers.{layer}.norm.weight"] = ("BF16", [hidden])
        mixer = f"backbone.layers.{layer}.mixer"
        if kind == "M":
            model.plain |= {f"{mixer}.{name}": ("BF16", [64]) for name in ("A_log", "D", "dt_bias")}
            model.plain[f"{mixer}.conv1d.weight"] = ("BF16", [convolved, 1, 4])
            model.plain[f"{mixer}.conv1d.bias"] = ("BF16", [convolved])
            model.plain[f"{mixer}.norm.weight"] = ("BF16", [inner])
            model.matrices[f"{mixer}.in_proj"] = (inner + convolved + 64, hidden)
            model.matrices[f"{mixer}.out_proj"] = (hidden, inner)
        elif kind == "*":
            for name, rows in (("q", 4096), ("k", 256), ("v", 256)):
                model.matrices[f"{mixer}.{name}_proj"] = (rows, hidden)
            model.matrices[f"{mixer}.o_proj"] = (hidden, 4096)
        else:
            model.plain[f"{mixer}.gate.weight"] = ("BF16", [128, hidden])
            model.plain[f"{mixer}.gate.e_score_correction_bias"] = ("F32", [128])
            for name, size in (("shared_experts", 3712), *((f"experts.{expert}", 1856) for expert in range(128))):
                model.matrices[f"{mixer}.{name}.up_proj"] = (size, hidden)
                model.matrices[f"{mixer}.{name}.down_proj"] = (hidden, size)
    return model


def ragged() -> tuple[Published, Tensors]:
    """Four layers of Mixtral that keep 8, 7, 6 and 5 experts; expert 1 is half as wide, no two are stored alike."""
    model = mixtral(4)
    tensors = dict(model.plain)
    schemes = (bf16, awq, fp8_tensor, awq, bf16, awq, fp8_tensor, awq)
    for layer in range(4):
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = ("BF16", [8 - layer, 4096])
    for name, (rows, columns) in model.matrices.items():
        head, cut, tail = name.partition(".experts.")
        if not cut:
            tensors |= bf16(name, rows, columns)
            continue
        layer, expert = int(head.split(".")[2]), int(tail.split(".")[0])
        if expert == 1:
            rows, columns = (rows, columns // 2) if tail.endswith("w2") else (rows // 2, columns)
        if expert < 8 - layer:
            tensors |= schemes[expert](name, rows, columns)
    return model, tensors
