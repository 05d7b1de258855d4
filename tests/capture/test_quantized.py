"""Quantised checkpoints in both engines, against plain checkpoints of the weights that they stand for."""

from __future__ import annotations

import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moetool.capture.choices import pick_device, pick_engine
from moetool.capture.pieces import PieceLoader
from moetool.capture.resident import load_model
from moetool.checkpoint.locate import locate
from moetool.errors import MoetoolError
from moetool.model.families import family_of
from moetool.model.meta import build_meta_model, native_class, native_config
from tests import quantized_checkpoints as q
from tests.capture.test_engines import assert_same, run
from tests.checkpoints import write_corpus
from tests.quantized_cases import CASES


def loaded(folder, dtype="bfloat16"):
    """A checkpoint as the resident engine loads it."""
    checkpoint = locate(str(folder))
    config = native_config(checkpoint.config)
    return load_model(checkpoint, config, native_class(config), dtype, pick_device("cpu"))


def loader_of(folder, dtype="bfloat16"):
    """A model on the meta device, and what fills it in the stream engine."""
    checkpoint = locate(str(folder))
    model = build_meta_model(native_config(checkpoint.config), dtype=getattr(torch, dtype))
    return model, PieceLoader(model, checkpoint, dtype, torch.device("cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a case, with ``quantised`` and ``plain`` in it, made once."""

    @cache
    def save(case):
        family, quantise, settings, options = CASES[case]
        folder = tmp_path_factory.mktemp("case")
        q.save_quantised(folder, family, quantise, settings, **options)
        return folder

    return save


def assert_same_weights(found, expected):
    assert found.keys() == expected.keys() != set()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("case", CASES)
def test_engines_agree_with_the_plain_checkpoint(case, saved, tmp_path):
    folder, plain = saved(case) / "quantised", saved(case) / "plain"
    dtype = CASES[case][3].get("dtype", torch.bfloat16)
    name = str(dtype).removeprefix("torch.")
    expected = AutoModelForCausalLM.from_pretrained(plain, dtype=dtype)
    assert_same_weights(loaded(folder, name).state_dict(), expected.state_dict())
    model, loader = loader_of(folder, name)
    loader.load("model.layers.1")
    assert_same_weights(model.model.layers[1].state_dict(), expected.model.layers[1].state_dict())
    loader.close()

    corpus = write_corpus(tmp_path / "corpus")
    assert pick_engine("auto", family_of({"model_type": CASES[case][0]}), locate(str(folder))) == "stream"
    streamed = run(folder, corpus, "stream")
    assert streamed.settings["dtype"] == name
    assert_same(streamed, run(folder, corpus, "resident"))
    assert_same(streamed, run(plain, corpus, "resident"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_rounded_once(dtype, tmp_path):
    """In float32 the weights are the products themselves, and no rounding to the type of the scales comes between."""
    _, quantise, settings, _ = CASES["int4 groups with zero points"]
    q.save_quantised(tmp_path, "qwen3_moe", quantise, settings, dtype=getattr(torch, dtype))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=getattr(torch, dtype))
    assert_same_weights(loaded(tmp_path / "quantised", dtype).state_dict(), expected.state_dict())
    corpus = write_corpus(tmp_path / "corpus")
    options = {"dtype": dtype}
    streamed = run(tmp_path / "quantised", corpus, "stream", **options)
    assert_same(streamed, run(tmp_path / "plain", corpus, "resident", **options))


@pytest.mark.parametrize("case", ["deepseek blocks", "gpt-oss", "int4 groups"])
def test_two_layers_are_in_memory_at_most(case, saved, tmp_path, monkeypatch):
    folder = saved(case) / "quantised"
    original, seen = PieceLoader.load, []

    def load(self, prefix, *args, **kwargs):
        original(self, prefix, *args, **kwargs)
        held = [tensor for tensor in self.model.parameters() if not tensor.is_meta]
        assert not any(tensor.dtype.itemsize == 1 for tensor in held)
        layers = self.model.model.layers
        there = {i for i, layer in enumerate(layers) if any(not part.is_meta for part in layer.parameters())}
        seen.append((there, sum(tensor.numel() for tensor in held if tensor.dim() > 1)))

    monkeypatch.setattr(PieceLoader, "load", load)
    run(folder, write_corpus(tmp_path / "corpus"), "stream")
    model, _ = loader_of(folder)
    sizes = sorted(sum(part.numel() for part in layer.parameters()) for layer in model.model.layers)
    assert {number for there, _ in seen for number in there} == set(range(3))
    for there, held in seen[1:]:
        assert len(there) <= 2, "the current layer and the next"
        assert held <= sum(sizes[-2:])


def rewrite(folder, source, change):
    """A copy of a checkpoint whose tensors ``change`` has changed."""
    shutil.copytree(source, folder)
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


MISSING = {
    "deepseek blocks": ["layers.2.mlp.experts.3.up_proj.weight_scale_inv", "layers.1.self_attn.kv_b_proj.weight_scale"],
    "fp8 per tensor": ["layers.2.self_attn.q_proj.weight_scale_inv"],
    "gpt-oss": ["layers.1.mlp.experts.down_proj_scales", "layers.1.mlp.experts.gate_up_proj_blocks"],
    "int4 groups": [
        "experts.3.up_proj.weight_scale",
        "layers.0.mlp.down_proj.weight_scale",
        "experts.2.up_proj.weight",
    ],
    "int4 groups with zero points": ["experts.3.up_proj.weight_zero_point"],
    "float per channel": ["layers.0.self_attn.o_proj.weight_scale"],
    "compressed nvfp4": ["experts.5.down_proj.weight_global_scale", "q_proj.weight_scale"],
    "modelopt nvfp4": ["experts.5.w2.weight_scale_2", "experts.5.w2.weight_scale"],
}


@pytest.mark.parametrize("engine", ["stream", "resident"])
@pytest.mark.parametrize(("case", "part"), [(case, part) for case, parts in MISSING.items() for part in parts])
def test_missing_parts_are_an_error(case, part, engine, saved, tmp_path):
    folder = tmp_path / "model"
    rewrite(folder, saved(case) / "quantised", lambda old: {name: t for name, t in old.items() if part not in name})
    with pytest.raises(MoetoolError, match=r"lacks|shape|convert|does not load|does not explain"):
        run(folder, write_corpus(tmp_path / "corpus"), engine)


def cut(tensor, dimension):
    return tensor.narrow(dimension, 0, tensor.shape[dimension] - 1).contiguous()


WRONG = {
    "rows of scales": ("deepseek blocks", "0.self_attn.kv_b_proj.weight_scale_inv", lambda t: cut(t, 0)),
    "columns of scales": ("deepseek blocks", "experts.1.up_proj.weight_scale_inv", lambda t: cut(t, 1)),
    "turned scales": ("deepseek blocks", "experts.1.up_proj.weight_scale_inv", lambda t: t.T.contiguous()),
    "blocks": ("gpt-oss", "1.mlp.experts.down_proj_blocks", lambda t: cut(t, 2)),
    "bytes of blocks": ("gpt-oss", "1.mlp.experts.down_proj_blocks", lambda t: cut(t, 3)),
    "words": ("int4 groups", "experts.1.up_proj.weight_packed", lambda t: cut(t, 1)),
    "shape": ("int4 groups", "experts.1.up_proj.weight_shape", lambda t: t - 1),
    "zero points": ("int4 groups with zero points", "experts.1.up_proj.weight_zero_point", lambda t: cut(t, 1)),
    "channels": ("int8", "experts.1.up_proj.weight_scale", lambda t: cut(t, 0)),
    "groups": ("compressed nvfp4", "experts.1.up_proj.weight_scale", lambda t: cut(t, 1)),
}


@pytest.mark.parametrize("engine", ["stream", "resident"])
@pytest.mark.parametrize("wrong", WRONG)
def test_other_shapes_are_an_error(wrong, engine, saved, tmp_path):
    case, part, change = WRONG[wrong]
    folder = tmp_path / "model"
    rewrite(folder, saved(case) / "quantised", lambda old: {n: change(t) if part in n else t for n, t in old.items()})
    with pytest.raises(MoetoolError, match=r"does not fit|shape|does not load|zero points"):
        run(folder, write_corpus(tmp_path / "corpus"), engine)
