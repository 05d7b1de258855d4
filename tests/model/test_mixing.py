"""Token mixers: kinds by family, headers against configs, windows against transformers' config classes, packings."""

from math import prod

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moetool.checkpoint.dtypes import BITS
from moetool.checkpoint.locate import locate
from moetool.checkpoint.types import Checkpoint, TensorInfo
from moetool.model.caches import Pool
from moetool.model.facts import model_facts
from moetool.model.families import LAYERS, find, role_of, template, text_config
from moetool.model.meta import plan_checkpoint
from moetool.model.presets import preset_checkpoint
from moetool.model.windows import layer_windows
from tests.checkpoints import COMMON, DEEPSEEK, DENSE_FIRST, FAMILIES

# Sizes that all differ, so that no two can be taken for each other: FAMILIES has heads of 8 nearly everywhere.
WIDE = {"head_dim": 12}
LATENT = {"kv_lora_rank": 20, "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 14}
ONE_KEY_HEAD = {"num_key_value_heads": 1}
DELTA_NET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_conv_kernel_dim": 3,
}
WINDOW = {"sliding_window": 9}
SKEWED = {
    "mixtral": {**WINDOW, **WIDE},
    "qwen2_moe": {**WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {**WINDOW, **WIDE, "use_sliding_window": True},
    "olmoe": ONE_KEY_HEAD,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gpt_oss": {**WINDOW, **WIDE},
    "granitemoe": ONE_KEY_HEAD,
    "phimoe": {**WINDOW, **ONE_KEY_HEAD},
    "glm4_moe": WIDE,
    "dots1": {**WINDOW, **WIDE, "max_window_layers": 1},
    "minimax": WIDE,
    "minimax_m2": WIDE,
    "hunyuan_v1_moe": WIDE,
    "ernie4_5_moe": WIDE,
    "flex_olmo": ONE_KEY_HEAD,
    "lfm2_moe": {"conv_L_cache": 5},
    "jamba": {"mamba_d_state": 6, "mamba_d_conv": 3, "mamba_expand": 3},
    "qwen3_next": {**DELTA_NET, **WIDE},
    "gemma4_text": {**WIDE, "global_head_dim": 20, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
    "granitemoeshared": ONE_KEY_HEAD,
    "granitemoehybrid": {
        "mamba_n_heads": 6, "mamba_expand": 3, "mamba_d_state": 10, "mamba_n_groups": 2, "mamba_d_conv": 3,
    },
    "nemotron_h": {**WIDE, "mamba_num_heads": 6, "mamba_head_dim": 10, "n_groups": 3, "conv_kernel": 3},
    "kimi_linear": {
        **LATENT, "linear_head_dim": 12, "num_hidden_layers": 4, "mlp_layer_types": ["dense"] + ["sparse"] * 3,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "exaone_moe": {**WINDOW, **WIDE},
    "solar_open": WIDE,
    "axk1": LATENT,
    "afmoe": {**WINDOW, **WIDE},
    "cohere2_moe": {**WINDOW, **WIDE},
    "aria_text": ONE_KEY_HEAD,
    "laguna": {**WINDOW, **WIDE},
    "hy_v3": WIDE,
    "glm4_moe_lite": LATENT,
    "deepseek_v32": {**LATENT, "index_n_heads": 3, "index_head_dim": 18},
}  # fmt: skip
SPARSE = {
    **DEEPSEEK, **LATENT, **DENSE_FIRST, "num_key_value_heads": 4, "q_lora_rank": 16, "n_group": 1, "topk_group": 1,
    "index_topk": 8, "index_n_heads": 3, "index_head_dim": 18,
}  # fmt: skip
SIX_LAYERS = {
    **WINDOW, **WIDE, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 3,
    "moe_intermediate_size": 16, "num_hidden_layers": 6,
}  # fmt: skip
EXTRA = {
    "llama4_text": {
        **WIDE, "num_local_experts": 8, "num_experts_per_tok": 1, "attention_chunk_size": 9, "num_hidden_layers": 4,
        "intermediate_size_mlp": 48,
    },
    "mimo_v2_flash": {**SIX_LAYERS, "v_head_dim": 6},
    "deepseek_v4": {
        "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 5, "num_key_value_heads": 1, "sliding_window": 9,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "q_lora_rank": 16,
        "o_lora_rank": 16, "o_groups": 2, "index_n_heads": 3, "index_head_dim": 8, "index_topk": 4,
        "qk_rope_head_dim": 8,
        "layer_types": ["sliding_attention", *["heavily_compressed_attention", "compressed_sparse_attention"] * 2],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "glm_moe_dsa": SPARSE,
    "hy_v4": SPARSE,
    "jetmoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "kv_channels": 12},
    "qwen3_5_moe_text": {**SIX_LAYERS, **DELTA_NET, "shared_expert_intermediate_size": 16, "num_hidden_layers": 4},
    "bailing_hybrid": {
        **SIX_LAYERS, **LATENT, "num_key_value_heads": 4, "q_lora_rank": 16, "num_hidden_layers": 4,
        "layer_group_size": 2, "n_group": 1, "topk_group": 1,
    },
    "granitemoe_swa": SIX_LAYERS,
    "flint": SIX_LAYERS,
    "kolibri1": SIX_LAYERS,
    "mellum": {**SIX_LAYERS, "layer_types": ["sliding_attention", "full_attention"] * 3},
}  # fmt: skip
SHARING = {
    **FAMILIES["gemma4_text"], **WIDE, "global_head_dim": 20, "num_hidden_layers": 6, "num_kv_shared_layers": 3,
    "hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
}  # fmt: skip
CASES = {name: (name, {**FAMILIES[name], **SKEWED[name]}) for name in FAMILIES}
CASES |= {name: (name, settings) for name, settings in EXTRA.items()}
CASES["gemma4_text, layers that share"] = ("gemma4_text", SHARING)
KINDS = {
    "mixtral": "s9 s9 s9", "qwen2_moe": "s9 f f", "qwen3_moe": "s9 s9 s9", "phimoe": "s9 s9 s9", "dots1": "f s9 s9",
    "deepseek_v2": "L L L", "deepseek_v3": "L L L", "axk1": "L L L", "glm4_moe_lite": "L L L", "glm_moe_dsa": "L L L",
    "hy_v4": "L L L", "deepseek_v32": "L L L", "gpt_oss": "s9 f s9", "exaone_moe": "s9 f s9", "afmoe": "s9 f s9",
    "cohere2_moe": "s9 f s9", "laguna": "s9 f s9", "minimax": "f l f", "lfm2_moe": "c f c", "jamba": "m f m",
    "qwen3_next": "l l l f", "qwen3_5_moe_text": "l l l f", "gemma4_text": "s16 s16 f", "granitemoehybrid": "m f m",
    "nemotron_h": "m f", "kimi_linear": "l L l L", "bailing_hybrid": "l L l L", "llama4_text": "k9 k9 k9 f",
    "mimo_v2_flash": "f s9 s9 s9 s9 f", "deepseek_v4": "s9 s9 z s9 z s9 z s9 z", "granitemoe_swa": "f s9 s9 s9 f s9",
    "flint": "f f s9 s9 s9 f", "kolibri1": "s9 s9 s9 s9 f s9", "mellum": "s9 f s9 f s9 f",
    "gemma4_text, layers that share": "s16 s16 f h16 h16 h",
}  # fmt: skip
LETTERS = {
    "full": "f", "sliding": "s", "chunked": "k", "latent": "L", "compressed": "z", "linear": "l", "mamba": "m",
    "convolution": "c", "shared": "h",
}  # fmt: skip


def build(case, dtype=torch.float32, **options):
    """A random model of a case; ``options`` go to ``from_config``."""
    family, settings = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**COMMON, **settings})
    return AutoModelForCausalLM.from_config(config, dtype=dtype, **options).eval()


def plan(config, name="planned"):
    return model_facts(plan_checkpoint(Checkpoint(name, None, config, (), None)), "config")


def check_kinds(case, mixers):
    found = " ".join(f"{LETTERS[mixer.kind]}{mixer.window or ''}" for mixer in mixers)
    assert found == KINDS.get(case, "f f f")


@pytest.mark.parametrize("case", CASES)
def test_kinds_and_headers_like_configs(tmp_path, case):
    model = build(case)
    model.save_pretrained(tmp_path)
    planned = plan(model.config.to_dict()).mixers
    check_kinds(case, planned)
    assert model_facts(locate(str(tmp_path))).mixers == planned


def test_key_heads():
    def heads(case):
        return [pool.heads for mixer in plan(build(case).config.to_dict()).mixers for pool in mixer.pools]

    assert heads("gemma4_text") == [2, 2, 1]
    assert heads("mimo_v2_flash") == [2, 4, 4, 4, 4, 2]
    assert heads("olmoe") == [1, 1, 1]  # its norm spans all heads
    assert heads("deepseek_v32") == [None] * 6


def mixers_of(tensors, config=None):
    infos = tuple(TensorInfo(name, "BF16", shape, 2 * prod(shape), None) for name, shape in tensors.items())
    base = {"model_type": "x", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    return model_facts(Checkpoint("x", None, {**base, **(config or {})}, infos, None)).mixers


def test_deepseek_v4_under_the_names_of_its_publisher():
    attention = {
        "attn_sink": (4,), "wq_a.weight": (16, 64), "q_norm.weight": (16,), "wq_b.weight": (64, 16),
        "wkv.weight": (16, 64), "kv_norm.weight": (16,), "wo_a.weight": (32, 32), "wo_b.weight": (64, 32),
        "compressor.ape": (4, 32), "compressor.wkv.weight": (32, 64), "compressor.wgate.weight": (32, 64),
        "compressor.norm.weight": (16,), "indexer.wq_b.weight": (24, 16), "indexer.weights_proj.weight": (3, 64),
        "indexer.compressor.ape": (4, 16), "indexer.compressor.wkv.weight": (16, 64),
        "indexer.compressor.wgate.weight": (16, 64), "indexer.compressor.norm.weight": (8,),
    }  # fmt: skip
    config = {"model_type": "deepseek_v4", "sliding_window": 9, "index_n_heads": 3, "index_topk": 4}
    near, far = mixers_of({f"layers.0.attn.{name}": shape for name, shape in attention.items()}, config)
    planned = plan(build("deepseek_v4").config.to_dict()).mixers
    assert (near, far) == tuple(_at(mixer, 0) for mixer in planned[3:5])
    assert far.pools == (Pool("compressed latents", 16, "16", 4), Pool("index keys", 8, "8", 4))
    assert (far.index_products, far.chosen, far.decode_products) == (3 * (8 + 1), 4, 2 * 16 * 4)


def _at(mixer, layer):
    return type(mixer)(layer, *(getattr(mixer, name) for name in list(mixer.__slots__)[1:]))


def test_layers_that_take_over_a_choice_score_nothing():
    attention = {
        "q_b_proj.weight": (96, 16), "kv_a_proj_with_mqa.weight": (26, 64), "kv_a_layernorm.weight": (20,),
        "kv_b_proj.weight": (96, 20), "o_proj.weight": (64, 56), "indexer.wk.weight": (18, 64),
    }  # fmt: skip
    tensors = {f"model.layers.0.self_attn.{name}": shape for name, shape in attention.items()}
    config = {"index_n_heads": 3, "index_topk": 8, "indexer_types": ["full"]}
    [own] = mixers_of(tensors, config)
    [taken] = mixers_of(tensors, {**config, "indexer_types": ["shared"]})
    assert (own.index_products, taken.index_products) == (3 * (18 + 1), 0)
    assert (own.chosen, taken.chosen) == (8, 8)
    assert [pool.what for pool in taken.pools] == ["latent"]


# Windows ------------------------------------------------------------------------------------------------------------

SWITCHED = [
    {"use_sliding_window": switch, "sliding_window": 9, "max_window_layers": border}
    for switch in (True, False)
    for border in (0, 2, 40)
]
SETTINGS = {
    "qwen2_moe": SWITCHED,
    "qwen3_moe": [{"use_sliding_window": switch, "sliding_window": 9} for switch in (True, False)],
    "qwen2": SWITCHED,
    "qwen3": SWITCHED,
    "dots1": [{"sliding_window": 9, "max_window_layers": border} for border in (0, 2, 62)] + [{"sliding_window": None}],
    "mixtral": [{"sliding_window": 9}, {"sliding_window": None}],
    "phimoe": [{"sliding_window": 9}],
    "cohere2_moe": [{}, {"first_k_dense_replace": 2}, {"sliding_window_pattern": 3, "sliding_window": 9}],
    "afmoe": [{}, {"global_attn_every_n_layers": 3}],
    "exaone_moe": [{}, {"sliding_window_pattern": 3}],
    "mimo_v2_flash": [{}, {"sliding_window_size": 128}],
    "llama4_text": [{}, {"attention_chunk_size": 9, "no_rope_layer_interval": 3}, {"no_rope_layers": [1, 0, 0, 1] * 4}],
    "inkling_text": [{}, {"local_layer_ids": [0, 3]}],
    "dots3_note_text": [{}, {"sliding_window_size": 64}, {"use_sliding_window": False}],
}
OTHERS = [
    "gpt_oss", "gemma2", "gemma3_text", "gemma4_text", "cohere2", "olmo3", "beam", "deepseek_v4", "flint", "kolibri1",
    "granitemoe_swa", "laguna", "mellum", "muse_spark_text", "inkling2_text", "diffusion_gemma_text", "zaya",
    "unlimited_ocr_text", "openai_privacy_filter",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, settings) for name, several in {**SETTINGS, **{o: [{}] for o in OTHERS}}.items() for settings in several],
)
@pytest.mark.parametrize("layers", [12, 13])
def test_windows_of_raw_configs_are_those_of_completed_ones(name, settings, layers):
    if "no_rope_layers" in settings:
        settings = {"no_rope_layers": settings["no_rope_layers"][:layers]}
    if name == "mimo_v2_flash" and layers == 12:
        settings = {**settings, "hybrid_layer_pattern": [0, *[1] * 4, 0, *[1] * 5, 0]}  # as published; 1 slides
    config = CONFIG_MAPPING[name](num_hidden_layers=layers, **settings)
    expected = _by_layer_types(config, layers)
    completed = config.to_dict()
    assert layer_windows(completed, layers) == expected
    raw = {"model_type": name, "num_hidden_layers": layers, **settings}
    assert layer_windows(raw, layers) == expected
    assert layer_windows({"model_type": "outer", "text_config": raw}, layers) == expected
    different = {key: value for key, value in config.to_diff_dict().items() if key != "layer_types"}
    # The class takes two keys out, without which nobody could tell: dots3_note's switch and cohere2_moe's dense layers.
    if not settings.keys() & {"first_k_dense_replace", "use_sliding_window"} or "max_window_layers" in settings:
        assert layer_windows({**different, "model_type": name}, layers) == expected


def _by_layer_types(config, layers):
    """What transformers does: by the class's own list of types, or the same in all layers."""
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None) or [f"{'sliding' if window else 'full'}_attention"] * layers
    return [
        ("chunked", chunk) if "chunked" in kind
        else ("sliding", window) if "sliding" in kind or "compressed" in kind
        else None
        for kind in types
    ]  # fmt: skip


def test_every_moe_class_of_transformers_by_its_defaults():
    """Without the list of types and with nothing but the name: no class has a default that windows.py lacks."""
    seen = set()
    for name in CONFIG_MAPPING:
        try:
            completed = CONFIG_MAPPING[name]().to_dict()
        except Exception:  # classes that cannot be made without arguments
            continue
        text = text_config(completed)
        layers = find(completed, *LAYERS)
        if not isinstance(layers, int) or not any("expert" in key for key in text):
            continue
        seen.add(name)
        expected = layer_windows(completed, layers)
        raw = {key: value for key, value in text.items() if key != "layer_types"}
        bare = {"model_type": text.get("model_type") or name}
        assert layer_windows(raw, layers) == expected, name
        assert layer_windows(bare, layers) == expected, name
    assert len(seen) > 60


# Packings -----------------------------------------------------------------------------------------------------------


def awq(rows, columns):
    return {
        "qweight": ("I32", (columns, rows // 8)),
        "qzeros": ("I32", (columns // 64, rows // 8)),
        "scales": ("F16", (columns // 64, rows)),
    }


def gptq(rows, columns):
    return {
        "qweight": ("I32", (columns // 8, rows)),
        "qzeros": ("I32", (columns // 64, rows // 8)),
        "scales": ("F16", (columns // 64, rows)),
        "g_idx": ("I32", (columns,)),
    }


def bitsandbytes(rows, columns):
    size = rows * columns
    return {
        "weight": ("U8", (size // 2, 1)),
        "weight.absmax": ("F32", (size // 64,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
    }


def compressed_tensors(rows, columns):
    return {
        "weight_packed": ("I32", (rows, columns // 8)),
        "weight_scale": ("BF16", (rows, columns // 64)),
        "weight_shape": ("I64", (2,)),
    }


def nvfp4(rows, columns):
    return {
        "weight": ("U8", (rows, columns // 2)),
        "weight_scale": ("F8_E4M3", (rows, columns // 16)),
        "weight_scale_2": ("F32", ()),
    }


def fp8(rows, columns):
    blocks = -(-rows // 128), -(-columns // 128)
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", blocks)}


def packed(checkpoint, pack):
    """The checkpoint with every matrix of attention packed; others keep their plain type."""
    for tensor in checkpoint.tensors:
        name = tensor.name.removesuffix(".weight")
        matrix = name != tensor.name and len(tensor.shape) == 2 and all(size % 64 == 0 for size in tensor.shape)
        if not matrix or role_of(template(tensor.name)) != "attention":
            yield tensor
            continue
        for end, (dtype, shape) in pack(*tensor.shape).items():
            yield TensorInfo(f"{name}.{end}", dtype, shape, prod(shape) * BITS[dtype] // 8, None)


PUBLISHED = [
    "mixtral-8x7b", "deepseek-v3", "deepseek-v3.2", "qwen3-next-80b-a3b", "gpt-oss-20b", "nemotron-3-nano",
    "gemma-4-26b-a4b", "jamba-v0.1",
]  # fmt: skip


@pytest.mark.parametrize("pack", [awq, gptq, bitsandbytes, compressed_tensors, nvfp4, fp8])
def test_packed_checkpoints_have_the_mixers_of_plain_ones(pack):
    for name in PUBLISHED:
        plain = preset_checkpoint(name)
        tensors = tuple(t for t in plain.tensors if ".experts." not in t.name)
        config = {key: value for key, value in plain.config.items() if key != "quantization_config"}
        expected = model_facts(Checkpoint(name, None, config, tensors, None)).mixers
        assert len(expected) > 20
        changed = tuple(packed(Checkpoint(name, None, config, tensors, None), pack))
        assert len(changed) > len(tensors)
        settings = {"quantization_config": {"quant_method": pack.__name__.replace("_", "-"), "bits": 4}}
        assert model_facts(Checkpoint(name, None, config | settings, changed, None)).mixers == expected, name
