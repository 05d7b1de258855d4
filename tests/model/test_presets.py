"""Published models by name: exact counts, the facts of their published configs, and the figures of their publishers."""

import json
from pathlib import Path

import pytest

from moetool.accounting.conventions import active_amounts, describe, total_amounts
from moetool.accounting.ledger import make_ledger
from moetool.errors import MoetoolError
from moetool.model.facts import model_facts
from moetool.model.families import text_config, to_native
from moetool.model.presets import PRESETS, preset_checkpoint

CONFIGS = Path(__file__).parents[3] / "shared" / "data" / "configs"
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason=f"published configs are not at {CONFIGS}")

COUNTS = {
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248, 12_617_781_248),
    "mixtral-8x22b": (140_620_634_112, 39_152_031_744, 38_955_423_744, 38_758_815_744),
    "deepseek-v2-lite": (15_706_484_224, 2_661_150_208, 2_451_435_008, 2_241_719_808),
    "deepseek-v2": (235_741_434_880, 21_375_800_320, 20_851_512_320, 20_327_224_320),
    "deepseek-v3": (671_026_404_352, 37_552_282_624, 36_625_603_584, 35_698_924_544),
    "deepseek-v3.2": (671_877_929_216, 38_403_807_488, 37_477_128_448, 36_550_449_408),
    "kimi-k2": (1_026_408_209_408, 32_861_477_888, 31_687_072_768, 30_512_667_648),
    "qwen3-235b-a22b": (235_093_634_560, 22_190_763_520, 21_568_433_664, 20_946_103_808),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776, 2_730_702_848),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408, 3_563_764_480, 3_252_599_552),
    "qwen3.5-35b-a3b": (34_660_610_688, 3_454_988_928, 2_946_429_568, 2_437_870_208),
    "qwen2-57b-a14b": (57_408_658_944, 14_249_270_784, 13_704_732_160, 13_160_193_536),
    "qwen1.5-moe-a2.7b": (14_315_784_192, 2_689_173_504, 2_378_008_576, 2_066_843_648),
    "llama-4-scout": (107_769_861_120, 17_172_894_720, 16_138_408_960, 15_103_923_200),
    "llama-4-maverick": (400_711_848_960, 17_184_691_200, 16_150_205_440, 15_115_719_680),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3_608_307_264, 3_029_173_824),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 5_132_849_472, 4_553_716_032),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688, 1_075_972_096),
    "glm-4.5": (352_797_814_784, 33_632_251_904, 32_856_305_664, 32_080_359_424),
    "glm-4.5-air": (106_852_245_504, 13_424_123_904, 12_803_366_912, 12_182_609_920),
    "minimax-m2": (228_689_748_992, 11_030_537_216, 10_415_940_608, 9_801_344_000),
    "dbrx": (131_596_523_520, 36_469_708_800, 35_853_146_112, 35_236_583_424),
    "phi-3.5-moe": (41_873_153_344, 6_640_999_744, 6_509_665_600, 6_378_299_392),
    "hunyuan-a13b": (80_393_183_232, 12_747_448_320, 12_222_476_288, 12_222_476_288),
    "ernie-4.5-21b-a3b": (21_825_436_160, 3_352_148_480, 3_087_383_040, 3_087_383_040),
    "nemotron-3-nano": (31_577_937_344, 3_580_073_408, 3_227_751_872, 2_875_430_336),
    "granite-3.1-3b-a800m": (3_298_793_472, 882_874_368, 807_372_288, 807_372_288),
    "gemma-4-26b-a4b": (25_233_141_760, 3_822_530_560, 3_084_333_056, 3_084_333_056),
    "jamba-v0.1": (51_570_323_328, 12_110_311_296, 11_841_875_840, 11_573_440_384),
}
"""Total and active parameters, the latter in the three conventions. Those with published configs are the counts of
``golden-counts.json``, made from these with transformers' own models."""
FIGURES = {
    "mixtral-8x7b": ("total", "all"),
    "mixtral-8x22b": ("total", "all, no-embedding, no-embedding-no-head"),
    "deepseek-v2-lite": ("total", "no-embedding (truncated)"),
    "deepseek-v2": ("total", "all, no-embedding"),
    "deepseek-v3": ("total", "no-embedding"),
    "deepseek-v3.2": (None, None),
    "kimi-k2": ("total", "no-embedding"),
    "qwen3-235b-a22b": ("total", "all, no-embedding"),
    "qwen3-30b-a3b": ("total", "all (truncated)"),
    "qwen3-next-80b-a3b": ("total", "no-embedding-no-head"),
    "qwen3.5-35b-a3b": ("total", "all, no-embedding"),
    "qwen2-57b-a14b": ("total", "all, no-embedding"),
    "qwen1.5-moe-a2.7b": ("total", "all"),
    "llama-4-scout": (None, "all"),  # 109B is counted with the vision tower
    "llama-4-maverick": ("total (truncated)", "all"),
    "gpt-oss-20b": ("total", "no-embedding"),
    "gpt-oss-120b": ("total", "no-embedding"),
    "olmoe-1b-7b": ("total", "all"),
    "glm-4.5": (None, "no-embedding-no-head"),  # 355B is counted with multi-token prediction
    "glm-4.5-air": ("total (truncated)", "no-embedding-no-head"),
    "minimax-m2": (None, "no-embedding, no-embedding-no-head"),  # 228.7 is called 230B
    "dbrx": ("total", "all, no-embedding"),
    "phi-3.5-moe": ("total", "all"),
    "hunyuan-a13b": ("total", "all"),
    "ernie-4.5-21b-a3b": ("total (truncated)", "all, no-embedding, no-embedding-no-head"),
    "nemotron-3-nano": ("total", "no-embedding"),
    "granite-3.1-3b-a800m": ("total", None),  # 0.807 is called 800M
    "gemma-4-26b-a4b": ("total", "all"),
    "jamba-v0.1": ("total", "all, no-embedding, no-embedding-no-head"),
}
"""What reproduces the published total and active figures; None where nothing does."""
PUBLISHED = {
    "mixtral-8x7b": "mistralai__Mixtral-8x7B-v0.1",
    "mixtral-8x22b": "mistralai__Mixtral-8x22B-v0.1",
    "deepseek-v2-lite": "deepseek-ai__DeepSeek-V2-Lite",
    "deepseek-v3": "deepseek-ai__DeepSeek-V3",
    "deepseek-v3.2": "deepseek-ai__DeepSeek-V3.2",
    "kimi-k2": "moonshotai__Kimi-K2-Instruct",
    "qwen3-235b-a22b": "Qwen__Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen__Qwen3-30B-A3B",
    "qwen3-next-80b-a3b": "Qwen__Qwen3-Next-80B-A3B",
    "qwen3.5-35b-a3b": "Qwen__Qwen3.5-35B-A3B",
    "llama-4-scout": "meta-llama__Llama-4-Scout-17B-16E-Instruct",
    "llama-4-maverick": "meta-llama__Llama-4-Maverick-17B-128E-Instruct",
    "gpt-oss-20b": "openai__gpt-oss-20b",
    "gpt-oss-120b": "openai__gpt-oss-120b",
    "olmoe-1b-7b": "allenai__OLMoE-1B-7B-0125-Instruct",
    "glm-4.5": "zai-org__GLM-4.5",
    "glm-4.5-air": "zai-org__GLM-4.5-Air",
    "minimax-m2": "MiniMaxAI__MiniMax-M2.5",
    "dbrx": "databricks__dbrx-base",
    "hunyuan-a13b": "tencent__Hunyuan-A13B-Instruct",
    "nemotron-3-nano": "nvidia__NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "gemma-4-26b-a4b": "google__gemma-4-26B-A4B",
}
"""MiniMax-M2.5 has the architecture of M2."""


def counted(name):
    facts = model_facts(preset_checkpoint(name), "config")
    return facts, make_ledger(facts)


def test_every_preset_is_held_to_its_counts():
    assert PRESETS.keys() == COUNTS.keys() == FIGURES.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_exact_counts(name):
    ledger = counted(name)[1]
    assert COUNTS[name] == (
        ledger.total.parameters,
        ledger.active_parameters,
        ledger.active_parameters_no_embedding,
        ledger.active_parameters_no_embedding_no_head,
    )
    assert ledger.parameters("vision") == ledger.parameters("mtp") == ledger.parameters("quantization") == 0


@pytest.mark.parametrize("name", FIGURES)
def test_published_figures_and_the_conventions_behind_them(name):
    preset, (facts, ledger) = PRESETS[name], counted(name)
    total = {"total": total_amounts(facts, ledger)["total"]}
    found = describe(preset.published_total, total), describe(preset.published_active, active_amounts(ledger))
    assert found == FIGURES[name]
    assert preset.source


@needs_configs
@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_facts_are_those_of_the_published_config(name, published):
    config = json.loads((CONFIGS / f"{published}.json").read_text())
    text = {**text_config(to_native(config))}
    for key, value in to_native(dict(PRESETS[name].config)).items():
        if key == "quantization_config":
            assert value["quant_method"] == config[key]["quant_method"]
        elif isinstance(value, dict):
            assert value.items() <= text[key].items(), key
        elif isinstance(text.get(key), list) and not isinstance(value, list):
            assert set(text[key]) == {value}, "the same in every layer"
        elif key in text or (key in config and text is not config):
            assert text.get(key, config.get(key)) == value, key
        else:
            assert (key, value) == ("tie_word_embeddings", False), key


@needs_configs
def test_counts_are_the_golden_ones():
    golden = json.loads((CONFIGS / "golden-counts.json").read_text())["models"]
    checked = PUBLISHED.items() - {("hunyuan-a13b", PUBLISHED["hunyuan-a13b"])}
    for name, published in checked:
        counts = golden[published]
        keys = ("text_total", "active_all", "active_noembed", "active_noembed_nohead")
        assert COUNTS[name] == tuple(counts[key] for key in keys), name
    assert len(checked) > 20


def test_layers_with_experts():
    assert [layer.layer for layer in counted("llama-4-maverick")[0].moe_layers] == list(range(1, 48, 2))
    assert [layer.layer for layer in counted("deepseek-v3")[0].moe_layers] == list(range(3, 61))
    layers = counted("hunyuan-a13b")[0].moe_layers
    assert {(layer.experts, layer.experts_per_token, layer.shared_experts) for layer in layers} == {(64, 8, 1)}


def test_a_checkpoint_of_its_own():
    checkpoint = preset_checkpoint("dbrx")
    assert (checkpoint.name, checkpoint.revision, checkpoint.folder) == ("dbrx", None, None)
    checkpoint.config["ffn_config"]["moe_top_k"] = 1
    assert PRESETS["dbrx"].config["ffn_config"]["moe_top_k"] == 4
    assert all(tensor.file is None for tensor in checkpoint.tensors)


def test_an_unknown_preset():
    with pytest.raises(MoetoolError, match="no preset 'mixtral'") as caught:
        preset_checkpoint("mixtral")
    assert caught.value.hint == "moetool models lists them"
